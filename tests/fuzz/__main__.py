"""Give changed inputs to each parser that reads from outside, and print a table: see README.md beside this file."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

from tests.fuzz.engine import HEADING, Parser, Report, cells, fuzz
from tests.fuzz.results import DOCUMENT
from tests.support.commands import count, leaving_nothing
from tests.support.figures import command, origin, parse_with_write

# `answers` imports synalinks, which takes seconds.
MODULES: Final = ("files", "records", "settings", "notices", "packed", "answers")
_SHOWN: Final = 300


def parsers_of(modules: tuple[str, ...] = MODULES) -> list[Parser]:
    """Return the parsers of these modules."""
    return [parser for name in modules for parser in import_module(f"tests.fuzz.{name}").PARSERS]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=count, default=100_000, help="inputs for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parser", help="only those whose name contains this")
    parser.add_argument("--module", choices=MODULES, help="only those of this module")
    parser.add_argument("--save", type=Path, help="write each failing input into this directory")
    chosen = parse_with_write(parser)
    # Set here because synalinks' import would otherwise request a price list from the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    names = [each.name for each in parsers_of((chosen.module,) if chosen.module else MODULES)]
    if chosen.parser is not None and not any(chosen.parser in name for name in names):
        parser.error(f"no parser has {chosen.parser} in its name: want a part of one of {', '.join(names)}")
    return chosen


def main() -> int:
    """Run the command. Return 1 if an input broke a rule."""
    chosen = options()
    # The folders of parsers are removed when the process exits.
    with leaving_nothing(last=atexit._run_exitfuncs):
        return _fuzz_all(chosen)


def _fuzz_all(chosen: argparse.Namespace) -> int:
    began = time.perf_counter()
    given = {name: getattr(chosen, name) for name in ("inputs", "seed", "module", "parser")}
    made = origin() | {"command": command("tests.fuzz", given), "seed": chosen.seed}
    parsers = parsers_of((chosen.module,) if chosen.module else MODULES)
    print(HEADING)
    failed = False
    for parser in parsers:
        if chosen.parser is not None and chosen.parser not in parser.name:
            continue
        report = fuzz(parser, inputs=chosen.inputs, seed=chosen.seed)
        print(f"| {' | '.join(cells(parser.name, report.figures()))} |", flush=True)
        _show_failures(report, chosen.save)
        if report.failures:
            failed = True
            again = command("tests.fuzz", given | {"parser": parser.name})
            print(f"again: {again}", file=sys.stderr)
        if chosen.write and report.failures:
            print(f"the row of {parser.name} was not written, because inputs broke a rule", file=sys.stderr)
        elif chosen.write:
            # After each one, so that a failure loses none.
            DOCUMENT.keep({parser.name: made | report.figures()})
    if chosen.write and chosen.module is None and chosen.parser is None:
        # Some may have been removed since.
        names = {parser.name for parser in parsers}
        DOCUMENT.replace({name: row for name, row in DOCUMENT.read().items() if name in names})
    print(f"\nseed {chosen.seed}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return int(failed)


def _show_failures(report: Report, folder: Path | None) -> None:
    """Print each failure, and write its input into this folder, if there is one."""
    for number, failure in enumerate(report.failures):
        print(f"{report.parser}: {failure.problem}: {failure.data[:_SHOWN]!r}", file=sys.stderr, flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{report.parser.replace(' ', '-')}-{number}").write_bytes(failure.data)


if __name__ == "__main__":
    sys.exit(main())
