"""What deploy/ is held against: the variables that are read, the commands that exist, the lines of the Dockerfile."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import typer

from distributed_backup.cli.app import app
from distributed_backup.training.settings import EnvironmentSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


class _Asked(Mapping[str, str]):
    """An environment in which nothing is set, and which remembers what it was asked for."""

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
    """The environment variables that the package reads."""
    asked = _Asked()
    EnvironmentSettings.read(asked)
    return frozenset(asked.names)


@functools.cache
def job_variables() -> frozenset[str]:
    """The environment variables that train.py reads: `os.environ["NAME"]`, `os.environ.get("NAME", …)`."""
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
    """The default of `BackupAndRestore(exit_code=…)`, read from its source, for importing it takes seconds."""
    tree = ast.parse((ROOT / "distributed_backup" / "callback.py").read_text())
    [init] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any(item.arg == "exit_code" for item in node.args.kwonlyargs)
    ]
    defaults = dict(zip((item.arg for item in init.args.kwonlyargs), init.args.kw_defaults, strict=True))
    return int(ast.unparse(defaults["exit_code"] or ast.Constant(-1)))


def is_command(words: list[str]) -> bool:
    """Whether `distributed-backup WORDS…` names a command that there is, and only options that it has."""
    command = typer.main.get_command(app)
    words = list(words)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]  # only a group has commands
    known = {option for parameter in command.params for option in parameter.opts}
    return not hasattr(command, "commands") and all(word in known for word in words if word.startswith("-"))


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its text on one line."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]
