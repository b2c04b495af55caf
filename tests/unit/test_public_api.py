"""The public face of the package: its names, the cost of its import, its errors, and where its examples are."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import distributed_backup
from distributed_backup import errors
from distributed_backup.position import Position

NAMES = {
    "Alert",
    "BackupAndRestore",
    "BackupError",
    "CheckpointStore",
    "FileCoordinator",
    "LeaseTimings",
    "MemoryCoordinator",
    "NoticeSource",
    "Position",
    "Preempted",
    "RedisCoordinator",
    "coordinator_from_url",
}
# These import synalinks.
HEAVY = {"BackupAndRestore"}
ROOT = Path(__file__).parents[2]
# Clients of object stores, and fsspec below them.
CLIENTS = {"fsspec", "s3fs", "gcsfs", "adlfs"}


def fresh(code: str) -> str:
    """Return the output of `code` in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_are_no_more_public_names_than_one_can_remember() -> None:
    """There are at most twelve, sorted, and these."""
    assert len(distributed_backup.__all__) <= 12
    assert set(distributed_backup.__all__) == NAMES
    assert set(dir(distributed_backup)) >= NAMES
    assert list(distributed_backup.__all__) == sorted(distributed_backup.__all__)


@pytest.mark.parametrize("name", sorted(NAMES - HEAVY))
def test_a_public_name_is_loaded_when_it_is_used(name: str) -> None:
    """The object is the one of its module, has a docstring, and is cached."""
    value = getattr(distributed_backup, name)
    assert value.__name__ == name
    assert value.__module__.startswith("distributed_backup.")
    assert inspect.getdoc(value)
    assert vars(distributed_backup)[name] is value


def test_every_public_name_has_a_home_that_defines_it() -> None:
    """The test reads the source, so it does not import synalinks."""
    assert set(distributed_backup._HOMES) == NAMES
    for name, home in distributed_backup._HOMES.items():
        path = Path(distributed_backup.__file__).parent.joinpath(*home.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        assert f"\nclass {name}" in source or f"\ndef {name}(" in source, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Attribute access raises AttributeError, and `from distributed_backup import x` ImportError."""
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        distributed_backup.Nonsense  # noqa: B018
    with pytest.raises(ImportError, match="Nonsense"):
        exec("from distributed_backup import Nonsense")


@pytest.mark.parametrize(
    "code",
    [
        "import distributed_backup",
        "from distributed_backup import CheckpointStore, FileCoordinator, LeaseTimings, MemoryCoordinator",
        "from distributed_backup import BackupError, Position, Preempted, coordinator_from_url",
        "import distributed_backup.checkpoints.store, distributed_backup.checkpoints.synalinks_backup",
        "import distributed_backup.worker.worker, distributed_backup.cli.copy_run, distributed_backup.cli.locate",
        "import distributed_backup.cli.app",
    ],
)
def test_importing_brings_in_neither_synalinks_nor_clients(code: str) -> None:
    """The callback alone imports synalinks. Clients are imported for the URLs that need them."""
    loaded = fresh(f"{code}; import sys; print(*sys.modules)").split()
    assert "distributed_backup" in loaded
    assert not {"synalinks", "litellm", "redis", "numpy", *CLIENTS} & set(loaded)


def test_importing_the_package_loads_none_of_its_modules() -> None:
    """`import distributed_backup` loads one module."""
    loaded = fresh("import distributed_backup, sys; print(*sys.modules)").split()
    assert [name for name in loaded if name.startswith("distributed_backup")] == ["distributed_backup"]


def test_importing_does_nothing_but_import() -> None:
    """An import reads no environment, starts no thread and configures no logging."""
    code = (
        "import os, sys, threading, logging\n"
        "os.environ = None\n"
        "import distributed_backup.checkpoints.store, distributed_backup.checkpoints.synalinks_backup\n"
        "print(threading.active_count(), logging.getLogger().handlers, "
        "logging.getLogger('distributed_backup').handlers)"
    )
    assert fresh(code) == "1 [] []"


def test_no_module_that_pytest_ignores_has_an_example() -> None:
    """`--doctest-modules` runs the examples of all other modules, except those of any `__main__`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    options = settings["addopts"].split()
    assert "--doctest-modules" in options
    assert "distributed_backup" in settings["testpaths"]
    ignored = {ROOT / option.removeprefix("--ignore=") for option in options if option.startswith("--ignore=distr")}
    ignored.update((ROOT / "distributed_backup").rglob("__main__.py"))
    assert len(ignored) == 7
    files = [file for path in ignored for file in (path.rglob("*.py") if path.is_dir() else [path])]
    assert len(files) > 20
    for path in files:
        assert ">>>" not in path.read_text(), path


# -------------------------------------------------------------------- errors

TREE = {
    "BackupError": Exception,
    "ConfigError": errors.BackupError,
    "StoreError": errors.BackupError,
    "CorruptCheckpointError": errors.StoreError,
    "NoUsableCheckpointError": errors.StoreError,
    "RunMismatchError": errors.StoreError,
    "StaleTermError": errors.StoreError,
    "CoordinatorError": errors.BackupError,
    "CoordinatorUnavailableError": errors.CoordinatorError,
    "RestoreError": errors.BackupError,
    "RestoreTimeoutError": errors.RestoreError,
    "NotSharedError": errors.RestoreError,
    "RecordedFailureError": errors.BackupError,
    "StateError": errors.BackupError,
    "ProgramMismatchError": errors.BackupError,
}


def test_the_errors_are_the_tree_that_is_drawn() -> None:
    """Each error of the module is drawn at its top, under its parent."""
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    assert set(found) == set(TREE)
    picture = str(errors.__doc__)
    for name, parent in TREE.items():
        assert found[name].__bases__[0] is parent
        assert inspect.getdoc(found[name])
        if name != "BackupError":
            assert f"── {name} " in picture


def test_a_wrong_argument_is_also_a_value_error() -> None:
    """Scripts for synalinks' callback catch ValueError."""
    assert issubclass(errors.ConfigError, ValueError)


def test_a_preemption_leaves_through_every_except_exception() -> None:
    """`Preempted` is a `SystemExit` with position and checkpoint, so `except Exception` does not catch it."""
    preempted = distributed_backup.Preempted(143, position=Position(1, 2), checkpoint="name", seconds=0.5)
    assert isinstance(preempted, SystemExit)
    assert not isinstance(preempted, Exception)
    assert (preempted.code, preempted.position, preempted.checkpoint, preempted.seconds) == (
        143,
        Position(1, 2),
        "name",
        0.5,
    )


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (errors.StoreError("can't read /x", path="/x"), ["/x"]),
        (errors.CorruptCheckpointError(path="/x/c", reason="it is empty"), ["/x/c", "it is empty"]),
        (errors.NoUsableCheckpointError(path="/x", reasons=("a: b", "c: d")), ["/x", "2 checkpoint", "a: b", "c: d"]),
        (errors.RunMismatchError(path="/x", expected="ours", found="theirs"), ["/x", "'ours'", "'theirs'"]),
        (errors.StaleTermError(path="/x", term=3, newest=4), ["/x", "term 3", "term 4"]),
    ],
)
def test_a_message_is_one_line_with_all_its_data(error: errors.StoreError, parts: list[str]) -> None:
    """The message contains each part, and the path is an attribute."""
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)
    assert error.path.startswith("/x")


def test_values_can_be_sent_between_processes() -> None:
    """A position survives pickle, for tests and launchers."""
    position = Position(1, 2)
    assert pickle.loads(pickle.dumps(position)) == position
