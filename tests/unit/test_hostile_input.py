"""Hostile input: each parser refuses it with an error of ours, in bounded memory and time. See tests/fuzz/README.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import MODULES, parsers_of
from tests.fuzz.corpus import CORPUS
from tests.fuzz.engine import HEADING, Parser, check, fuzz
from tests.fuzz.planted import PLANTED

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distributed_backup"
# The rest imports synalinks: see tests/integration/test_hostile_state.py.
PARSERS = {parser.name: parser for parser in parsers_of(tuple(name for name in MODULES if name != "answers"))}
# Of each parser, here. By hand it gets 100,000.
INPUTS = 40
BUDGET = 3000


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_changed_inputs_break_no_rule(parser: Parser) -> None:
    report = fuzz(parser, inputs=INPUTS, seed=0)
    assert [(failure.problem, failure.data) for failure in report.failures] == []
    assert (report.inputs, report.lines > 5) == (INPUTS, True)


@pytest.mark.parametrize(("name", "data"), CORPUS, ids=[f"{name} {place}" for place, (name, _) in enumerate(CORPUS)])
def test_an_input_that_once_broke_a_rule_breaks_none(name: str, data: bytes) -> None:
    assert check(PARSERS[name], data) is None


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_a_valid_input_is_accepted(parser: Parser) -> None:
    """Otherwise the changes would test the first check only."""

    def is_accepted(data: bytes) -> bool:
        try:
            parser.call(data)
        except parser.ours:
            return False
        return True

    # Each argument of a command has another form, so none of the inputs is right for all of them.
    assert any(map(is_accepted, parser.seeds)) or parser.name == "arguments of commands"


@pytest.mark.parametrize("parser", PLANTED, ids=lambda parser: parser.name)
def test_each_planted_error_is_found(parser: Parser) -> None:
    report = fuzz(parser, inputs=BUDGET, seed=0, failures=1)
    assert report.failures, f"not found with {report.inputs} inputs"


def test_the_command_prints_a_row_for_each_parser() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "3", "--module", "notices"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| metadata of ")]
    assert len(rows) == 3
    assert all(line.count("|") == HEADING.splitlines()[0].count("|") for line in rows)


def test_a_seed_repeats_its_inputs() -> None:
    parser = PARSERS["journal segment"]
    first, second = (fuzz(parser, inputs=50, seed=3) for _ in range(2))
    assert (first.lines, first.refused) == (second.lines, second.refused)
    other = fuzz(parser, inputs=50, seed=4)
    assert other.lines != first.lines


def test_every_module_that_parses_has_a_parser() -> None:
    """A module with one of these calls is among those that the parsers reach, or reads nothing from outside."""
    calls = re.compile(
        r"unpackb|\bloads\(|\.decode\(|fromisoformat\(|urlsplit\(|fromhex\(|b64decode\(|decompress|int\(match"
    )
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if calls.search(path.read_text())}
    assert found == READ | set(NOT_FROM_OUTSIDE)


def calls_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}


def test_nothing_from_outside_is_unpickled_or_executed() -> None:
    """No module loads pickles or evaluates text. `client.eval` runs our scripts in Redis."""
    called = set[str]().union(*map(calls_in, PACKAGE.rglob("*.py")))
    unsafe = {name for name in called if name in EXECUTES or name.rpartition(".")[0] in {"pickle", "marshal", "shelve"}}
    assert unsafe == {"pickle.PicklingError"}


EXECUTES = {"eval", "exec", "compile", "__import__", "np.load", "np.fromfile", "yaml.load", "os.system", "os.popen"}
# The parsers of tests/fuzz reach these.
READ = {
    *("checkpoints/format.py", "checkpoints/journal_format.py", "checkpoints/run_identity.py"),
    *("checkpoints/state_body.py", "checkpoints/synalinks_backup.py", "coordination/file.py", "coordination/redis.py"),
    *("coordination/record_files.py", "observability/events.py", "preemption/sources/metadata.py"),
    *("redis_client/address.py", "storage/local.py", "storage/parts.py", "storage/redis.py", "training/packing.py"),
    *("training/codec.py", "training/random_states.py", "training/responses.py"),
}
NOT_FROM_OUTSIDE = {
    "cli/journal_commands.py": "decodes the text of an answer with replacements",
    "cli/timeline_commands.py": "reads its own JSON",
    "demo/job.py": "reads its own pipe",
    "demo/offline_model.py": "reads its own questions",
    "inspection/meeting.py": "reads what the other process of `check` has written",
    "inspection/other_process.py": "reads its own pipe",
    "inspection/party.py": "reads what the other process of `check` has written",
    "observability/log_lines.py": "reads its own JSON",
    "observability/reporter.py": "replaces surrogates",
    "training/attributes.py": "reads its own JSON",
    "training/fingerprint.py": "reads its own JSON",
}
