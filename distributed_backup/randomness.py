"""Give clients of servers a random generator of their own.

`random` has one generator per process, and it is training state: optimizers draw candidates from it. Clients draw from
it too, to space their retries or to choose a node. The draws depend on the network, so a resumed fit would end in
another state. `isolate_rng` replaces `random` in the clients' modules. It reaches modules that are loaded at the time
of the call. A function that imports `random` itself still draws from the training's generator.
"""

from __future__ import annotations

import random
import sys
from types import ModuleType

_own = random.Random()


def _is_drawn_by(value: object) -> bool:
    """Return whether this is a method of the process's generator, as `random.choice` is."""
    return getattr(value, "__self__", None) is random._inst  # noqa: SLF001


def _made() -> ModuleType:
    """Make a copy of `random` whose functions draw from our generator."""
    made = ModuleType(random.__name__, random.__doc__)
    for name, value in vars(random).items():
        setattr(made, name, getattr(_own, name) if _is_drawn_by(value) else value)
    return made


_ours = _made()


def isolate_rng(*packages: str) -> None:
    """Make the loaded modules of these packages draw from our generator.

    Args:
        packages: Names of top-level packages. Packages that are not loaded are ignored.

    Example:
        >>> import redis.cluster
        >>> isolate_rng("redis")
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
