"""Run the README's example in a child process, which imports synalinks."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
from pathlib import Path
from typing import Any

from distributed_backup import BackupAndRestore
from tests.support.programs import build_program, samples


def run_example(report: Any, code: str, directory: Path) -> dict[str, Any]:
    os.chdir(directory)

    async def run() -> dict[str, Any]:
        program, _ = await build_program()
        x, y = samples(16)
        scope: dict[str, Any] = {"program": program, "x": x, "y": y}
        compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(compiled, scope)
        history = scope["history"].history
        return {"epochs": len(history["reward"]), "leftovers": os.listdir(directory)}

    return asyncio.run(run())


def constructor(report: Any) -> dict[str, Any]:
    """Return the arguments of the callback with the repr of their defaults."""
    parameters = inspect.signature(BackupAndRestore).parameters
    return {name: repr(parameter.default) for name, parameter in parameters.items()}
