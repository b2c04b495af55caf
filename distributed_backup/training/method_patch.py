"""Wrap a method of one instance, or a function of one module, for the time of a fit.

Limit: a caller that has kept the method itself, as a bound method, is not reached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MethodPatch:
    """A method of one instance, wrapped until `remove`. Patches may be removed in any order."""

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._owner, self._name = owner, name
        self.wrapper: Callable[..., Any] | None = wrapper
        self.previous = vars(owner).get(name)
        self._original = getattr(owner, name)
        # Not setattr: program and optimizer track the attributes that are set on them.
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapper with the original as its first argument. After `remove`, call the original."""
        if self.wrapper is None:
            return self._original(*args, **kwargs)
        return self.wrapper(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Pass calls through. Restore the method if this patch is on top, below it all patches removed before."""
        self.wrapper = None
        attributes = vars(self._owner)
        top = attributes.get(self._name)
        while isinstance(top, MethodPatch) and top.wrapper is None:
            top = top.previous
        if top is None:
            attributes.pop(self._name, None)
        else:
            attributes[self._name] = top
