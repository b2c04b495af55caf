"""The documents are true: their commands run, their example works, their tables and links match the code.

Commands for a cluster, in deploy/README.md, are checked by `tests/deploy/test_readme.py`. Benchmarks are run by hand.
"""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest

from distributed_backup.checkpoints.format import Snapshot
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.clock import SystemClock
from distributed_backup.coordination import coordinator_from_url
from distributed_backup.coordination import redis as redis_coordinator
from distributed_backup.coordination.timings import LeaseTimings
from distributed_backup.errors import ConfigError
from distributed_backup.observability.event_log import EventLog
from distributed_backup.observability.events import KINDS, OPTIONAL_FIELDS
from distributed_backup.observability.log_lines import LEVELS
from distributed_backup.observability.reporter import Reporter
from distributed_backup.position import Position
from distributed_backup.training.environment import ENVIRONMENT_PREFIX, EnvironmentSettings
from distributed_backup.urls import REDIS_SCHEMES
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.bench.__main__ import BENCHMARKS
from tests.support.processes import Child
from tests.support.servers import RedisServer

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distributed_backup"
DOCUMENTS = {
    name: path.read_text()
    for path in sorted(ROOT.rglob("*.md"))
    if not (name := str(path.relative_to(ROOT))).startswith(".")
}
README, BACKENDS, OPERATIONS, GUARANTEES, CHANGES = (
    DOCUMENTS[name]
    for name in (
        "README.md",
        "deploy/BACKENDS.md",
        "deploy/OPERATIONS.md",
        "distributed_backup/GUARANTEES.md",
        "distributed_backup/CHANGES.md",
    )
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CI = (ROOT / ".ci" / "run").read_text()
SCENARIOS = "tests.integration.readme_scenarios"


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


FOR_A_CLUSTER = "deploy/README.md"
COMMANDS = list(
    dict.fromkeys(
        line
        for name, text in DOCUMENTS.items()
        for block in blocks("bash", text)
        for line in block.splitlines()
        if name != FOR_A_CLUSTER
    )
)
RUN_BY_NAMED_TESTS = {
    "pip install uv && uv run distributed-backup demo": "test_the_demonstration_holds_what_is_promised",
    "uv run distributed-backup demo --coordinator embedded-redis": "test_the_demonstration_holds_what_is_promised",
    "uv run distributed-backup demo --backup-dir DIR": "test_a_backup_directory_in_use_is_wrong_usage",
    "uv run distributed-backup check DIR --wait 60": "test_two_machines_meet_by_the_same_command",
    "uv run python -m tests.fuzz": "test_the_command_prints_a_row_for_each_parser",
    "uv run python -m tests.fuzz --inputs 1000 --seed 7 --parser checkpoint": "test_changed_inputs_break_no_rule",
    "uv run python -m tests.chaos --minutes 1": "test_a_campaign_over_redis_ends_with_a_table",
    "uv run python -m tests.simulation --runs 500": "test_hundreds_of_runs_keep_all_promises",
    "uv run python -m tests.simulation --runs 10000 --seed 1 --write": "test_hundreds_of_runs_keep_all_promises",
    "uv run python -m tests.simulation --runs 500 --plant-all --write": "test_each_planted_error_is_found",
    "uv run python -m tests.support.prose README.md": "test_every_document_is_easy_to_read",
}
BENCH = "uv run python -m tests.bench"
CHAOS = "uv run python -m tests.chaos --minutes 1"
ON_A_RUN = [
    command for command in COMMANDS if {"DIR", "URL"} & set(command.split()) and command not in RUN_BY_NAMED_TESTS
]
SCRIPT = Path(sys.executable).with_name("distributed-backup")


def test_every_command_is_run_by_a_test_or_by_ci() -> None:
    """Only the benchmarks and long campaigns of chaos are run by hand. `test_journal` runs parts of a campaign."""
    benchmarks = {BENCH, CHAOS, *(f"{BENCH} {name}" for name in BENCHMARKS)}
    left = set(COMMANDS) - set(RUN_BY_NAMED_TESTS) - set(ON_A_RUN) - benchmarks
    assert left
    for command in left:
        for part in command.split(" && "):
            assert part.replace("pip install", "pip install --quiet") in CI or part in CI, command
    assert set(RUN_BY_NAMED_TESTS) | benchmarks <= set(COMMANDS)
    assert {where_is(test) != [] for test in RUN_BY_NAMED_TESTS.values()} == {True}


def test_the_first_screen_shows_the_two_commands_of_a_newcomer() -> None:
    """They are in its first 40 lines, and it has at most 180."""
    lines = README.splitlines()
    assert len(lines) <= 180
    screen = "\n".join(lines[:40])
    assert "pip install uv && uv run distributed-backup demo" in screen
    assert "pip install uv && uv run pytest" in screen


def test_every_document_is_easy_to_read() -> None:
    """`tests.support.prose` finds nothing in any Markdown file."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.prose", *DOCUMENTS], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@contextmanager
def running(directory: Path, coordinator: str) -> Iterator[None]:
    """Start two workers on a run that has one checkpoint and one boundary that is not saved yet."""
    groups = ("trainable", "non_trainable", "optimizer_trainable", "optimizer_non_trainable", "metrics")
    body = orjson.dumps({part: {group: [] for group in groups} for part in ("variables", "schema")})
    CheckpointStore(directory).commit(Snapshot(position=Position(1), body=body), term=1, worker_id="earlier")
    with ExitStack() as stack:
        for name in ("one", "other"):
            made = coordinator_from_url(coordinator, backup_dir=directory)
            stack.callback(made.close)
            store, clock = CheckpointStore(directory), SystemClock()
            worker = Worker(
                store=store,
                coordinator=made,
                clock=clock,
                report=Reporter(name, EventLog(store.storage, clock=clock)),
                options=WorkerOptions(timings=LeaseTimings(duration=60.0, renew_deadline=40.0, retry_period=1.0)),
            )
            worker.join()
            stack.callback(worker.close, timeout=0.0)
            worker.await_start()
            worker.training_started(Position(1))
            worker.boundary(Snapshot(position=Position(1, 1), body=body), due=False)
        yield


@pytest.fixture(scope="module")
def led_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, dict[str, str]]]:
    """The values of DIR and URL, for a run that is led by a file lock and for one that is led over a server."""
    root = tmp_path_factory.mktemp("runs")
    with (
        RedisServer(root / "server", port=0) as server,
        running(root / "by-lock", "file:"),
        running(root / "by-server", server.url),
    ):
        yield {
            False: {"DIR": str(root / "by-lock")},
            True: {"DIR": str(root / "by-server"), "URL": server.url},
        }


@pytest.mark.parametrize("command", ON_A_RUN)
def test_each_command_on_a_run_works(command: str, led_runs: dict[bool, dict[str, str]], tmp_path: Path) -> None:
    """Run the console script on a run that two workers train."""
    arguments = command.removeprefix("uv run distributed-backup ").split()
    named = led_runs["URL" in arguments]
    words = [named.get(word, word) for word in arguments]
    (tmp_path / "deploy").mkdir()
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_picture_in_the_readme_is_of_a_demonstration() -> None:
    """The commands that made it are in OPERATIONS.md."""
    picture = (ROOT / "deploy" / "run.svg").read_text()
    assert picture.startswith("<svg")
    assert '<title id="title">Run demo-' in picture
    assert "](deploy/run.svg)" in README


def test_the_example_works_as_it_stands(tmp_path: Path) -> None:
    """It trains ten epochs, and deletes the backup at the end, as synalinks' own callback does."""
    (example,) = (block for text in DOCUMENTS.values() for block in blocks("python", text))
    assert len(example.splitlines()) <= 14
    with Child(f"{SCENARIOS}:run_example", example, tmp_path, log=tmp_path / "log") as child:
        result = child.result()
    assert result == {"epochs": 10, "leftovers": ["log"]}


def option_rows(text: str) -> dict[str, tuple[str, str]]:
    options = text.partition("\n## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", options, flags=re.MULTILINE)
    return {name: (default.strip(" `"), variable.strip(" `")) for name, default, variable in rows}


def test_the_table_of_options_is_complete(tmp_path: Path) -> None:
    """It has exactly the arguments, in order. The README has eight of its rows."""
    with Child(f"{SCENARIOS}:constructor", log=tmp_path / "log") as child:
        arguments = child.result()
    rows = option_rows(BACKENDS)
    assert list(rows) == list(arguments)
    for name in ("double_checkpoint", "delete_checkpoint", "save_before_preemption", "exit_code", "on_save_error"):
        assert rows[name][0].replace('"', "'") == arguments[name]
    assert option_rows(README).items() <= rows.items()
    assert len(option_rows(README)) == 8
    assert f"A preempted process exits with {arguments['exit_code']}." in " ".join(README.split())


def test_the_documents_name_every_variable_that_is_read() -> None:
    """A wrong value of each is refused with its name, so each is read. The coordinator's takes any text."""
    named = {variable for _, variable in option_rows(BACKENDS).values() if variable}
    metrics = OPERATIONS.partition("\n## Metrics")[2].partition("\n## ")[0]
    named |= set(re.findall(rf"`({ENVIRONMENT_PREFIX}[A-Z_]+)`", metrics))
    fields = {ENVIRONMENT_PREFIX + name.upper() for name in EnvironmentSettings.__dataclass_fields__}
    assert named == fields
    for text in DOCUMENTS.values():
        assert set(re.findall(rf"{ENVIRONMENT_PREFIX}[A-Z_]+", text)) <= fields
    for variable in sorted(named - {f"{ENVIRONMENT_PREFIX}COORDINATOR"}):
        with pytest.raises(ConfigError, match=re.escape(variable)):
            EnvironmentSettings.read({variable: "no such / value"})


def test_the_tables_of_urls_and_keys_are_complete() -> None:
    """They have every scheme, and every key of a run on a server, with its type."""
    for scheme in REDIS_SCHEMES:
        assert f"`{scheme}://" in BACKENDS
    rows = dict(re.findall(r"^\| `(\w+)` \| (hash|string|sorted set|channel) \|", BACKENDS, flags=re.MULTILINE))
    described = dict(re.findall(r"backup:\{RUN\}:(\w+) +(hash|string|zset|channel)", redis_coordinator.__doc__ or ""))
    assert rows == {name: kind.replace("zset", "sorted set") for name, kind in described.items()}
    assert len(rows) == 6


def test_the_map_of_the_rooms_is_what_the_linter_checks() -> None:
    """It has the same layers in the same order, and every module."""
    drawn = ("cli " + README.partition("```text\ncli ")[2].partition("```")[0]).splitlines()
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [[name.strip() for name in re.split("[|:]", layer)] for layer in layers]
    assert [re.split(" {2,}", line)[0].split(", ") for line in drawn] == checked
    modules = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {name for layer in checked for name in layer} == {name for name in modules if not name.startswith("_")}


def where_is(test: str) -> list[str]:
    """The test files that have a test of this name."""
    found = (path for path in sorted((ROOT / "tests").rglob("test_*.py")) if f"def {test}(" in path.read_text())
    return [str(path.relative_to(ROOT)) for path in found]


def test_every_promise_names_tests_that_exist() -> None:
    """GUARANTEES.md has the promises of the README, in the same order, each with its tests."""
    promises = re.findall(r"^\d\. \*\*(.*?)\*\*", GUARANTEES, flags=re.MULTILINE)
    assert promises == re.findall(r"^\d\. \*\*(.*?)\*\*", README, flags=re.MULTILINE)
    named = {
        title: re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
        for title, text in zip(promises, re.split(r"^\d\. ", GUARANTEES, flags=re.MULTILINE)[1:], strict=True)
    }
    assert [title for title, tests in named.items() if not tests] == []
    missing = {
        f"{path}::{test}": where_is(test)
        for text in DOCUMENTS.values()
        for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
        if path not in where_is(test)
    }
    assert missing == {}, "with the files in which they are now"


def test_every_message_that_is_explained_is_one_of_ours() -> None:
    """The source contains each part of the message between its values."""
    rows = [
        line
        for text in (README, OPERATIONS)
        for line in re.findall(r"^\| (`.*?) \|", tables_of_messages(text), re.MULTILINE)
    ]
    assert len(rows) > 20
    texts = "\n".join(
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    parts = [
        part.strip(" ,:") for row in rows for message in re.findall(r"`(.*?)`", row) for part in message.split("…")
    ]
    assert [part for part in parts if part not in texts] == []


def test_the_table_of_log_events_is_complete() -> None:
    """Operators parse these lines: it has every event, its level, and the keys that it has or may have."""
    table = OPERATIONS.partition("\n| event |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\|", table, flags=re.MULTILINE)
    keys = {event: cell.partition("optional") for event, _, cell in rows}
    assert {event: frozenset(re.findall(r"`(\w+)`", always)) for event, (always, _, _) in keys.items()} == KINDS
    may_have = {event: frozenset(re.findall(r"`(\w+)`", cell)) for event, (_, _, cell) in keys.items()}
    assert {event: fields for event, fields in may_have.items() if fields} == OPTIONAL_FIELDS
    levels = {event: logging.getLevelNamesMapping()[level] for event, level, _ in rows}
    assert levels == dict.fromkeys(KINDS, logging.INFO) | LEVELS


def tables_of_messages(text: str) -> str:
    return text.partition("\n| message |")[2].partition("\n\n")[0]


def anchors(text: str) -> set[str]:
    """Return the names that links give to the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    """Each relative link names a file of the repository, and a heading in it."""
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_extras_and_versions_are_those_of_the_project() -> None:
    """The README's table has all extras. The changes end with the newest version."""
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert set(re.findall(r"distributed-backup\[([a-z0-9-]+)\]", README)) == extras
    for text in DOCUMENTS.values():
        assert set(re.findall(r"distributed-backup\[([a-z0-9-]+)\]", text)) <= extras
    newest = PROJECT["project"]["version"]
    assert f"The newest version is {newest}." in README
    versions = re.findall(r"^## (.*)$", CHANGES, flags=re.MULTILINE)
    assert newest in versions[:2]
    assert set(versions[: versions.index(newest)]) <= {"Unreleased"}
