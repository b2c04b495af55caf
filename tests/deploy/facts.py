"""Read what deploy/ must agree with: variables, commands, the exit code, the lines of the Dockerfile."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from distributed_backup.cli.app import app
from distributed_backup.training.environment import EnvironmentSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# host[:port]/path:tag or @digest, where the tag of a version has a digit.
PINNED = re.compile(r"[^@\s]+(:(?=[\w.-]*\d)[\w][\w.-]*|@sha256:[0-9a-f]{64})")


class _Recorder(Mapping[str, str]):
    """An empty environment that records the names it is asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@functools.cache
def package_variables() -> frozenset[str]:
    """Return the environment variables that the package reads."""
    asked = _Recorder()
    EnvironmentSettings.read(asked)
    return frozenset(asked.names)


@functools.cache
def job_variables() -> frozenset[str]:
    """Return the names in `os.environ["NAME"]` and `os.environ.get("NAME", …)` of train.py."""
    tree = ast.parse((DEPLOY / "train.py").read_text())
    found = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript) and _is_environ(node.value)]
    found += [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_environ(node.func.value)
    ]
    return frozenset(str(name.value) for name in found if isinstance(name, ast.Constant))


def _is_environ(node: ast.expr) -> bool:
    return ast.unparse(node) == "os.environ"


@functools.cache
def callback_exit_code() -> int:
    """Return the default of `BackupAndRestore(exit_code=…)`, from its source: its import takes seconds."""
    tree = ast.parse((ROOT / "distributed_backup" / "callback.py").read_text())
    [init] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any(item.arg == "exit_code" for item in node.args.kwonlyargs)
    ]
    defaults = dict(zip((item.arg for item in init.args.kwonlyargs), init.args.kw_defaults, strict=True))
    return int(ast.unparse(defaults["exit_code"] or ast.Constant(-1)))


def is_command(words: list[str]) -> bool:
    """Return whether `distributed-backup WORDS…` is a command of the CLI, with options that it has."""
    command = typer.main.get_command(app)
    words = list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]  # only a group has commands
    known = {option for parameter in command.params for option in parameter.opts}
    return not hasattr(command, "commands") and all(word in known for word in words if word.startswith("-"))


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, each with its text on one line."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]
