"""Run the benchmarks of a fit with few rounds on a small state. Imports synalinks. For `test_bench`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest import mock

from tests.integration.resume_scenarios import directory

SMALL = {"SIZES": {"30 kB": 30_000}, "BATCHES": 3, "ROUNDS": 2, "EPOCHS": 1}


def figures(report: Callable[..., None], name: str) -> str:
    """Return the table of one benchmark."""
    module = import_module(f"tests.bench.{name}")
    few: dict[str, Any] = {constant: value for constant, value in SMALL.items() if hasattr(module, constant)}
    with mock.patch.multiple(module, **few), directory() as root:
        root.mkdir()
        table: str = asyncio.run(module.report(root)).markdown()
    return table
