"""Clients draw from a generator that is not the training's."""

from __future__ import annotations

import random
import sys
from types import ModuleType

import pytest

from distributed_backup.randomness import isolate_rng


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a client, with all the ways to come to the generator."""
    module = ModuleType("client.retry")
    exec("import random\nimport random as r\nfrom random import choice, random as draw, Random", module.__dict__)
    monkeypatch.setitem(sys.modules, "client.retry", module)
    return module


DRAWS = {
    "the module": lambda client: client.random.random(),
    "the module under another name": lambda client: client.r.uniform(0, 1),
    "a function": lambda client: client.choice([1, 2]),
    "a function under another name": lambda client: client.draw(),
}


@pytest.mark.parametrize("way", DRAWS)
def test_a_client_that_was_told_of_draws_apart(client: ModuleType, way: str) -> None:
    """Before that it takes a number that the training would have had."""
    before = random.getstate()
    DRAWS[way](client)
    assert random.getstate() != before
    isolate_rng("client", "nobody")
    before = random.getstate()
    DRAWS[way](client)
    assert random.getstate() == before


def test_a_client_finds_all_that_the_module_has(client: ModuleType) -> None:
    """Some make a generator of their own at each retry."""
    isolate_rng("client")
    assert vars(client.random).keys() >= {name for name in vars(random) if not name.startswith("__")}
    assert client.random.Random is random.Random
    assert client.random.SystemRandom().random() < 1


def test_what_is_not_the_generator_and_who_was_not_told_of_stay(client: ModuleType) -> None:
    """A class of generators still makes new ones, and the training's own modules draw as before."""
    isolate_rng("clien", "retry")
    assert client.random is random
    isolate_rng("client")
    assert client.Random is random.Random
    assert random.choice.__self__ is random._inst  # type: ignore[attr-defined]
