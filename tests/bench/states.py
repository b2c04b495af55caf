"""Programs with a state of a wanted size, and the object that `orjson.dumps` is measured on.

The size comes from the trainable variable's history of candidates, of which only the text and the numbers are made
up: entries of about 2.3 kB with instructions and three examples, as an optimizer leaves them.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import orjson

SIZES: Final = {"30 kB": 30_000, "0.2 MB": 200_000, "2 MB": 2_000_000, "20 MB": 20_000_000}

# What every state holds besides the history: both generators' states, mostly.
_REST: Final = 15_000
_PROSE: Final = (
    "the model should first restate question then list given numbers with units check each step against answer "
    "never guess when unsure say so and cite sentence that supports it return only final value"
)
_WORDS: Final = _PROSE.split()


def inflate(program: Any, size: int) -> None:
    """Give the program's state about `size` bytes of JSON; the same ones each time."""
    program.trainable_variables[0].get_json()["history"] = _history(size - _REST)


def saved_object(program: Any) -> dict[str, Any]:
    """What a snapshot of the program holds: all variables and both generators' states."""
    groups = {
        "trainable": program.trainable_variables,
        "non_trainable": program.non_trainable_variables,
        "optimizer_trainable": program.optimizer.trainable_variables,
        "optimizer_non_trainable": program.optimizer.non_trainable_variables,
        "metrics": program.metrics_variables,
    }
    return {
        "variables": {name: [variable.get_json() for variable in group] for name, group in groups.items()},
        "python_random": random.getstate(),
        "numpy_random": np.random.get_state(),
    }


def _history(size: int) -> list[dict[str, Any]]:
    generator = random.Random(size)
    history: list[dict[str, Any]] = []
    while size > 0:
        history.append(_candidate(generator))
        size -= len(orjson.dumps(history[-1])) + 1
    return history


def _candidate(generator: random.Random) -> dict[str, Any]:
    examples = [
        {
            "inputs": {"query": _text(generator, 30) + "?"},
            "outputs": {"thinking": _text(generator, 60), "answer": _text(generator, 3)},
            "reward": generator.random(),
        }
        for _ in range(3)
    ]
    return {"instructions": _text(generator, 120), "examples": examples, "reward": generator.random()}


def _text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(_WORDS, k=words))
