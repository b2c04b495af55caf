"""Keeps clients off the training's random numbers.

`random` has one generator for the whole process, and it is training state: optimizers choose candidates with it.
Clients of servers draw from it too, for the pauses between their retries or to choose a node, from whatever thread and
as often as the network has it; a fit beside them would not end as one without. So their modules are given a generator
of our own. That holds for modules that are loaded by then; one that imports `random` anew within a function is not
reached.
"""

from __future__ import annotations

import random
import sys
from types import ModuleType

_own = random.Random()


def _is_drawn_by(value: object) -> bool:
    """Whether this is a method of the one generator, as `random.choice` is."""
    return getattr(value, "__self__", None) is random._inst  # noqa: SLF001


def _made() -> ModuleType:
    """`random`, but that its functions draw from our generator."""
    made = ModuleType(random.__name__, random.__doc__)
    for name, value in vars(random).items():
        setattr(made, name, getattr(_own, name) if _is_drawn_by(value) else value)
    return made


_ours = _made()


def isolate_rng(*packages: str) -> None:
    """Have all loaded modules of these packages draw from a generator that is not the training's.

    Args:
        packages: Names of top-level packages; one that is not loaded is no error.

    Example:
        >>> import redis.cluster
        >>> draw_apart("redis")
        >>> before = random.getstate()
        >>> redis.cluster.random.choice([1, 2]) in {1, 2}, random.getstate() == before
        (True, True)
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in packages:
            for attribute, value in list(vars(module).items()):
                if value is random:
                    setattr(module, attribute, _ours)
                elif _is_drawn_by(value):  # `from random import choice`
                    setattr(module, attribute, getattr(_own, value.__name__))
