"""Give changed inputs to each parser that reads from outside, and print a table: see README.md beside this file."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

from tests.fuzz.engine import HEADING, Parser, fuzz

# `answers` imports synalinks, which takes seconds.
MODULES: Final = ("files", "records", "settings", "notices", "packed", "answers")
_SHOWN: Final = 300


def parsers_of(modules: tuple[str, ...] = MODULES) -> list[Parser]:
    """Return the parsers of these modules."""
    return [parser for name in modules for parser in import_module(f"tests.fuzz.{name}").PARSERS]


def main() -> int:
    """Run the command. Return 1 if an input broke a rule."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=100_000, help="inputs for each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--parser", help="only those whose name contains this")
    options.add_argument("--module", choices=MODULES, help="only those of this module")
    options.add_argument("--save", type=Path, help="write each failing input into this directory")
    chosen = options.parse_args()
    print(HEADING)
    failed, began = False, time.perf_counter()
    for parser in parsers_of((chosen.module,) if chosen.module else MODULES):
        if chosen.parser is not None and chosen.parser not in parser.name:
            continue
        report = fuzz(parser, inputs=chosen.inputs, seed=chosen.seed)
        print(report.row(), flush=True)
        for number, failure in enumerate(report.failures):
            failed = True
            print(f"{parser.name}: {failure.problem}: {failure.data[:_SHOWN]!r}", file=sys.stderr, flush=True)
            if chosen.save is not None:
                chosen.save.mkdir(parents=True, exist_ok=True)
                (chosen.save / f"{parser.name.replace(' ', '-')}-{number}").write_bytes(failure.data)
    print(f"\nseed {chosen.seed}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
