"""Figures in documents: each table is made from the newest results, so a test sees a figure that is not one of them.

A folder has a `README.md` and a `results.json` beside it. The README's tables stand between markers, such as
`<!-- results of planted -->` and `<!-- end of results -->`. A command writes both files.

The limit: results may be of different days. Each has its own date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.support.commands import check_disk

type Results = Mapping[str, Any]

NOT_MEASURED: Final = "Not measured yet.\n"
_BLOCK: Final = re.compile(r"(<!-- results of (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def parse_with_write(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of a command whose figures `--write` keeps. It is refused beside a `--bug`.

    So is a `TMPDIR` that can't be used, because the figures name its disk.
    """
    parser.add_argument("--write", action="store_true", help="keep the figures in results.json and README.md")
    chosen = parser.parse_args()
    if chosen.write and getattr(chosen, "bug", None) is not None:
        parser.error("--write keeps no figures of a planted error")
    check_disk(parser)
    return chosen


def missing(found: Mapping[str, object]) -> str:
    """Return why the figures of planted errors are not whole. Empty if none of them is None."""
    names = [name for name, runs in found.items() if runs is None]
    return f"{', '.join(names)} {'was' if len(names) == 1 else 'were'} not found: give more --runs" if names else ""


def is_whole(why: str) -> bool:
    """Whether figures may be kept. If there is a reason against it, say so: they would replace whole ones."""
    if why:
        print(f"nothing was written, because {why}", file=sys.stderr)
    return not why


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[str] = ()) -> str:
    """Return a table in Markdown. The columns in `texts` begin at the left."""
    lines = [head, ["---" if name in texts else "---:" for name in head], *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])


def origin(place: Path | None = None) -> dict[str, str]:
    """Return when and where something is measured. `place` is on the disk that is used, by default that of `TMPDIR`."""
    return {"day": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "machine": machine(place or Path(tempfile.gettempdir()))}


def machine(place: Path) -> str:
    """Return one line on the CPUs, the kernel, the Python and the file system."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} CPUs (load {load:.1f}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"{_file_system(place)}"
    )


def _file_system(place: Path) -> str:
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown file system"
    holding = [(len(at), kind) for at, kind in mounts if place.resolve().is_relative_to(at)]
    return max(holding)[1] if holding else "unknown file system"


def command(module: str, options: Mapping[str, object]) -> str:
    """Return a command line. An option that is None is left out, and True stands for a flag."""
    given = {f"--{name}": value for name, value in options.items() if value is not None}
    words = [word for name, value in given.items() for word in ([name] if value is True else [name, str(value)])]
    return shlex.join(["uv", "run", "python", "-m", module, *words])


def origins(results: Iterable[Results]) -> str:
    """Return when, where and by which commands results were made: a sentence, or a list if they differ."""
    lines = sorted({(each["day"], _origin_line(each)) for each in results})
    mark = "- " if len(lines) > 1 else ""
    return "".join(f"{mark}{line}\n" for _, line in lines)


def _origin_line(result: Results) -> str:
    made = f"`{result['command']}`, " if "command" in result else ""
    return f"{made}{result['day']}, {result['machine']}."


def own_tables(results: Results) -> dict[str, str]:
    """Return a table for each result, from its `head` and `rows`. `texts`, if it has them, begin at the left."""
    return {
        name: f"{table(each['head'], each['rows'], each.get('texts', ()))}\n{origins([each])}"
        for name, each in results.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The figures of one folder.

    Args:
        folder: Where `README.md` and `results.json` are.
        tables: Returns tables by the names of their markers. Those left out are not measured yet.
        picture: Returns `results.svg`. None if there is no picture.
    """

    folder: Path
    tables: Callable[[Results], Mapping[str, str]] = own_tables
    picture: Callable[[Results], str] | None = None

    def read(self) -> dict[str, Any]:
        """Return the newest results by name. Empty if there are none."""
        return dict(json.loads(self._results.read_text())) if self._results.exists() else {}

    def keep(self, results: Results) -> None:
        """Keep these results, and what is there under other names. Write the tables and the picture."""
        self.replace(self.read() | dict(results))

    def replace(self, results: Results) -> None:
        """Keep these results only. Write the tables and the picture."""
        self._results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        for path, text in self.texts(results).items():
            path.write_text(text)

    def texts(self, results: Results) -> dict[Path, str]:
        """Return the text of each file that holds figures."""
        tables = self.tables(results)

        def block(found: re.Match[str]) -> str:
            return f"{found[1]}\n{tables.get(found[2], NOT_MEASURED)}\n{found[3]}"

        readme = self.folder / "README.md"
        texts = {readme: _BLOCK.sub(block, readme.read_text())}
        if self.picture is not None:
            texts[self.folder / "results.svg"] = self.picture(results)
        return texts

    def names(self) -> list[str]:
        """Return the names of the markers."""
        return [found[2] for found in _BLOCK.finditer((self.folder / "README.md").read_text())]

    @property
    def _results(self) -> Path:
        return self.folder / "results.json"
