"""Make programs with a state of a given size, and the object for the measurement of `orjson.dumps`.

The size comes from the trainable variable's history of candidates. Its entries of about 2.3 kB have instructions and
three examples, as an optimizer writes them. Only their text and numbers are invented.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import orjson

SIZES: Final = {"30 kB": 30_000, "0.2 MB": 200_000, "2 MB": 2_000_000, "20 MB": 20_000_000}

# Every state has this besides the history: mostly the states of both random generators.
_REST: Final = 15_000
_PROSE: Final = (
    "the model should first restate question then list given numbers with units check each step against answer "
    "never guess when unsure say so and cite sentence that supports it return only final value"
)
_WORDS: Final = _PROSE.split()


def inflate(program: Any, size: int) -> None:
    """Give the program's state about `size` bytes of JSON, the same ones each time."""
    program.trainable_variables[0].get_json()["history"] = _history(size - _REST)


def saved_object(program: Any) -> dict[str, Any]:
    """Return the content of a snapshot: all variables and the states of both random generators."""
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
