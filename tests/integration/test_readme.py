"""The README is the front door: each command in it runs, its example works, its tables are true."""

from __future__ import annotations

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
from distributed_backup.observability.events import Reporter
from distributed_backup.position import Position
from distributed_backup.training.settings import ENVIRONMENT_PREFIX, EnvironmentSettings
from distributed_backup.urls import REDIS_SCHEMES
from distributed_backup.worker.options import WorkerOptions
from distributed_backup.worker.worker import Worker
from tests.support.processes import Child
from tests.support.servers import RedisServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
SCENARIOS = "tests.integration.readme_scenarios"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
ON_A_RUN = [command for command in COMMANDS if {"DIR", "URL"} & set(command.split())]


def test_every_command_is_run_by_a_test_or_by_ci() -> None:
    """The demos are run by tests/integration/test_demo.py, the benchmarks by hand; nothing else escapes."""
    by_hand_or_elsewhere = {
        "pip install uv && uv run distributed-backup demo",
        "uv run distributed-backup demo --coordinator embedded-redis",
        "uv run python -m tests.bench",
    }
    left = set(COMMANDS) - by_hand_or_elsewhere - set(ON_A_RUN)
    assert left
    for command in left:
        for part in command.split(" && "):
            assert part.replace("pip install", "pip install --quiet") in CI or part in CI, command


def test_the_two_commands_of_a_newcomer_stand_on_the_first_screen() -> None:
    """Within 40 lines."""
    screen = "\n".join(README.splitlines()[:40])
    assert "pip install uv && uv run distributed-backup demo" in screen
    assert "pip install uv && uv run pytest" in screen


@contextmanager
def running(directory: Path, coordinator: str) -> Iterator[None]:
    """Two workers that train on a run, with a checkpoint in it and a boundary that is not saved yet."""
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
                worker_id=name,
                clock=clock,
                reporter=Reporter(name, EventLog(store.storage, clock=clock)),
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
    """What DIR and URL stand for: in a run that is led by a file lock, and in one that is led over a server."""
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
    """As the console script, on a run that two workers train."""
    arguments = command.removeprefix("uv run distributed-backup ").split()
    script = Path(sys.executable).with_name("distributed-backup")
    named = led_runs["URL" in arguments]
    words = [named.get(word, word) for word in arguments]
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_example_works_as_it_stands(tmp_path: Path) -> None:
    """Ten epochs, and the backup is gone at the end, as with synalinks' own callback."""
    (example,) = blocks("python")
    assert len(example.splitlines()) <= 14
    with Child(f"{SCENARIOS}:run_example", example, tmp_path, log=tmp_path / "log") as child:
        result = child.result()
    assert result == {"epochs": 10, "leftovers": ["log"]}


def option_rows() -> dict[str, tuple[str, str]]:
    options = README.partition("## Options")[2].partition("## Operations")[0]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|", options, flags=re.MULTILINE)
    return {name: (default.strip(" `"), variable.strip(" `")) for name, default, variable in rows}


def test_the_table_of_options_is_complete(tmp_path: Path) -> None:
    """Each argument stands in it, in order, and no other."""
    with Child(f"{SCENARIOS}:constructor", log=tmp_path / "log") as child:
        arguments = child.result()
    assert list(option_rows()) == list(arguments)
    for name in ("double_checkpoint", "delete_checkpoint", "save_before_preemption", "exit_code", "on_save_error"):
        assert option_rows()[name][0].replace('"', "'") == arguments[name]


def test_the_table_names_every_variable_that_is_read() -> None:
    """A wrong value of each is refused, naming it, so each is read; what takes any text is seen in the result."""
    named = {variable for _, variable in option_rows().values() if variable}
    seeing = README.partition("## Seeing it")[2].partition("\n## ")[0]
    named |= set(re.findall(rf"`({ENVIRONMENT_PREFIX}[A-Z_]+)`", seeing))
    fields = {ENVIRONMENT_PREFIX + name.upper() for name in EnvironmentSettings.__dataclass_fields__}
    assert named == fields
    for variable in sorted(named - {f"{ENVIRONMENT_PREFIX}COORDINATOR"}):
        with pytest.raises(ConfigError, match=re.escape(variable)):
            EnvironmentSettings.read({variable: "no such / value"})


def test_the_tables_of_urls_and_keys_are_complete() -> None:
    """Every scheme stands in the text, and every key that a run has on a server, with its type."""
    for scheme in REDIS_SCHEMES:
        assert f"`{scheme}://" in README
    rows = dict(re.findall(r"^\| `(\w+)` \| (hash|string|sorted set|channel) \|", README, flags=re.MULTILINE))
    described = dict(re.findall(r"backup:\{RUN\}:(\w+) +(hash|string|zset|channel)", redis_coordinator.__doc__ or ""))
    assert rows == {name: kind.replace("zset", "sorted set") for name, kind in described.items()}
    assert len(rows) == 6


def test_the_drawing_of_the_layers_is_what_the_linter_checks() -> None:
    """From the top to the bottom, and no module is left out."""
    drawn = "cli " + README.partition("```\ncli ")[2].partition("```")[0]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [[name.strip() for name in re.split("[|:]", layer)] for layer in layers]
    assert [[name.strip() for name in layer.split(",")] for layer in drawn.split("→")] == checked
    modules = {path.stem for path in (ROOT / "distributed_backup").iterdir() if not path.name.startswith(("_", "py."))}
    assert {name for layer in checked for name in layer} == modules
