"""Wrap async methods of classes, modules and objects once in a process, for as long as anyone holds them.

Wrappers of others may be put above ours, and may be taken off, at any time. A wrapper of ours that is below another one
stays there and passes calls through. The next `install` takes it out, if it is then on top.

Limits: a caller that has kept the function itself is not reached. The copy of an object calls the original's method.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

_MISSING: Final = object()


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a wrapped function. `owner` is the module or the object whose method it is."""

    owner: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    original: Callable[..., Awaitable[Any]]

    async def send(self) -> Any:
        """Call the original."""
        return await self.original(*self.args, **self.kwargs)


class SharedPatches:
    """Wrapped functions and their holders. `send` is awaited in place of each call, while there is a holder."""

    def __init__(self, send: Callable[[Call], Awaitable[Any]]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._holders: set[Any] = set()
        self._patches: list[_Patch] = []

    def install(self, holder: Any, targets: Iterable[tuple[Any, str]]) -> None:
        """Wrap what is not wrapped, or has another wrapper above ours. Each target is an owner and a name."""
        with self._lock:
            self._holders.add(holder)
            for owner, name in targets:
                found = _patch_of(vars(owner).get(name))
                if found is None or not found.is_active:
                    self._patches.append(_Patch(owner, name, self._send))

    def remove(self, holder: Any) -> None:
        """Put the originals back if this was the last holder."""
        with self._lock:
            self._holders.discard(holder)
            while self._patches and not self._holders:
                self._patches.pop().remove()

    def is_installed(self, holder: Any) -> bool:
        """Whether `holder` was installed and not removed."""
        return holder in self._holders


class _Patch:
    """A function that is an attribute, wrapped until `remove`."""

    is_active = True

    def __init__(self, owner: Any, name: str, send: Callable[[Call], Awaitable[Any]]) -> None:
        self._owner, self._name, self._send = owner, name, send
        self._original = inspect.getattr_static(owner, name) if inspect.isclass(owner) else getattr(owner, name)
        # Read after `getattr`: a module may make the attribute then.
        self._previous = vars(owner).get(name, _MISSING)
        while (dead := _patch_of(self._previous)) is not None and not dead.is_active:
            self._previous, self._original = dead._previous, dead._original  # noqa: SLF001 - of the same class
        self.wrapper = self._wrapped()
        self._put(self.wrapper)

    def remove(self) -> None:
        """Pass calls through. Put the original back unless another wrapper is above ours."""
        self.is_active = False
        if vars(self._owner).get(self._name) is self.wrapper:
            self._put(self._previous)

    def _wrapped(self) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(self._original)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = self._call(args, kwargs)
            return await (self._send(call) if self.is_active else call.send())

        wrapper._shared_patch = self  # type: ignore[attr-defined]  # noqa: SLF001 - our own attribute
        return wrapper

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if not inspect.isclass(self._owner):
            return Call(self._owner, self._name, args, kwargs, self._original)
        item, *others = args
        bind = getattr(self._original, "__get__", None)
        original = self._original if bind is None else bind(item, type(item))
        return Call(item, self._name, tuple(others), kwargs, original)

    def _put(self, value: Any) -> None:
        if inspect.isclass(self._owner):
            if value is _MISSING:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, value)
        # Not setattr: synalinks tracks the attributes that are set on its objects.
        elif value is _MISSING:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = value


def _patch_of(attribute: Any) -> _Patch | None:
    """Return the patch whose wrapper this is. `functools.wraps` copies our mark to the wrappers of others."""
    patch = getattr(attribute, "_shared_patch", None)
    return patch if isinstance(patch, _Patch) and patch.wrapper is attribute else None
