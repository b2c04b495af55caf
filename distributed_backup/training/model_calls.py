"""Send each request of a fit to a model through a recorder: the seam of the journal.

Wrapped are `LanguageModel._acompletion` with every override of it, `litellm.aembedding`, `litellm.asystemone` of
decision models, and the methods that a user names. All of them are below cache, retries, parsing and counters of
synalinks. So a recorded answer counts like an asked one, and each attempt of a retry is a request of its own.

The wrappers are shared by all fits of a process. A context variable tells whose request it is: tasks that a fit starts
inherit it.

Limits: a request is sent and not recorded if another event loop sends it, or if its function is out of reach. Out of
reach is a function that other code has kept before the fit, or that is set on a model itself, as `_systemone` is. So is
the `_acompletion` of a subclass that is defined after `install`, unless it calls the inherited one.

Facts relied on (synalinks 0.10.14): `_acompletion` is the transport seam, see its docstring. The models of the other
two kinds look `litellm.aembedding` and `litellm.asystemone` up at each call. `fit` calls callbacks in its own task.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol

import litellm
from synalinks.src.modules.language_models.language_model import LanguageModel

from distributed_backup.errors import ConfigError
from distributed_backup.once import OnceLogger
from distributed_backup.training.codec import Codec
from distributed_backup.training.request_key import request_key
from distributed_backup.training.responses import RESPONSES, hidden_params
from distributed_backup.training.shared_patch import Call, SharedPatches

logger = logging.getLogger(__name__)

_COMPLETION: Final = "_acompletion"


class Recorder(Protocol):
    """Delivers recorded answers, and records new ones."""

    @property
    def is_open(self) -> bool:
        """Whether requests go through the recorder. If False they are sent as without it."""

    async def ask(self, key: str | None, request: Callable[[], Awaitable[Any]], codec: Codec) -> Any:
        """Return the recorded answer of a request, or send the request and record its answer.

        Without a key the request can't be found again, so its answer is not worth recording.
        """

    async def ask_stream(
        self, key: str | None, request: Callable[[], Awaitable[AsyncIterator[Any]]], codec: Codec
    ) -> AsyncIterator[Any]:
        """As `ask`, for a stream. The codec is for each item of the stream.

        The first item comes as soon as the request was accepted. It is not a chunk of the answer.
        """


class ModelCalls:
    """The requests of one fit. They go through `recorder` from `install` until `remove`.

    `also` are pairs of an object, class or module and the name of an async method, which a user's own client has. It
    must return what `responses` can record: JSON, values that `packing` knows, or a response of litellm.
    """

    def __init__(self, recorder: Recorder, also: Iterable[tuple[Any, str]] = ()) -> None:
        self._recorder = recorder
        self._also = [(owner, name) for owner, name in also]
        for owner, name in self._also:
            _check(owner, name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._warnings = OnceLogger(logger)

    def install(self) -> None:
        """Begin to record the requests of this task, and of the tasks that it starts from now on."""
        self._loop = asyncio.get_running_loop()
        _patches.install(self, [*_model_targets(), *self._also])
        _fits.set((*_others(self), self))

    def remove(self) -> None:
        """Send requests as without a recorder. This may be called in any task or thread, and more than once."""
        _patches.remove(self)
        if self in _fits.get():
            _fits.set(_others(self))

    def records(self, call: Call) -> bool:
        """Whether a call of this task goes through the recorder."""
        if not self._recorder.is_open or _under_way.get() is self or not self._covers(call):
            return False
        if asyncio.get_running_loop() is self._loop:
            return True
        self._warnings.warning(
            "a request to a model was sent from another event loop than that of fit, so its answer is not recorded and "
            "is paid for again after a restart. Await it in the loop of fit"
        )
        return False

    def _covers(self, call: Call) -> bool:
        """Whether the call is of a model, or of what this fit named. Other fits may have named more."""
        if call.owner is litellm or isinstance(call.owner, LanguageModel):
            return True
        return any(
            name == call.name and (owner is call.owner or (inspect.isclass(owner) and isinstance(call.owner, owner)))
            for owner, name in self._also
        )

    async def send(self, call: Call) -> Any:
        """Send a call through the recorder."""
        key = _key_of(call)
        if call.name != _COMPLETION or not call.kwargs.get("stream"):
            return await self._recorder.ask(key, lambda: self._asked(call), RESPONSES)
        items = await self._recorder.ask_stream(key, lambda: self._asked_stream(call), RESPONSES)
        return _Stream(items, hidden=await anext(items))

    async def _asked(self, call: Call) -> Any:
        with self._asking():
            return await call.send()

    async def _asked_stream(self, call: Call) -> AsyncIterator[Any]:
        return self._items(await self._asked(call))

    async def _items(self, response: Any) -> AsyncIterator[Any]:
        """Yield the hidden parameters of a stream, then its chunks. synalinks takes plain iterators as well."""
        yield hidden_params(response)
        is_async = hasattr(response, "__aiter__") or hasattr(response, "__anext__")
        while True:
            with self._asking():
                try:
                    chunk = await response.__anext__() if is_async else next(response)
                except (StopAsyncIteration, StopIteration):
                    return
            yield chunk

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Let requests that are part of one under way pass, as of an override that calls the inherited method."""
        token = _under_way.set(self)
        try:
            yield
        finally:
            _under_way.reset(token)


class _Stream:
    """The chunks of an answer. synalinks reads the cost of a stream when it begins."""

    def __init__(self, chunks: AsyncIterator[Any], hidden: dict[str, Any]) -> None:
        self._chunks = chunks
        self._hidden_params = hidden

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._chunks)


# -------------------------------------------------------------------- what is wrapped


def _model_targets() -> list[tuple[Any, str]]:
    """Return each class that defines the method of a language model, and the functions of other models."""
    classes: list[type] = [LanguageModel]
    for kind in classes:
        classes += kind.__subclasses__()
    # A mixin may define it, which is no subclass itself.
    owners = dict.fromkeys(next(base for base in kind.__mro__ if _COMPLETION in vars(base)) for kind in classes)
    return [*((owner, _COMPLETION) for owner in owners), (litellm, "aembedding"), (litellm, "asystemone")]


def _check(owner: Any, name: str) -> None:
    found = inspect.getattr_static(owner, name, None) if inspect.isclass(owner) else getattr(owner, name, None)
    if not inspect.iscoroutinefunction(found) or not hasattr(owner, "__dict__"):
        raise ConfigError(
            f"the requests of {_label(owner)} can't be recorded, because {name!r} is no async method of it that can be "
            "replaced. Pass an object, class or module and the name of a method that is defined with `async def`"
        )


def _key_of(call: Call) -> str | None:
    positional = "messages" if call.name == _COMPLETION else "arguments"
    model = getattr(call.owner, "model", None)
    name = model if isinstance(model, str) else ""
    return request_key(f"{_label(call.owner)}.{call.name}", name, {positional: call.args, **call.kwargs})


def _label(owner: Any) -> str:
    """Return the name of a module or class, or of the class of an object. Each process has the same."""
    if inspect.ismodule(owner):
        return owner.__name__
    return owner.__qualname__ if inspect.isclass(owner) else type(owner).__qualname__


# -------------------------------------------------------------------- whose request it is


async def _send(call: Call) -> Any:
    """Send a call through the recorder of the innermost fit of this task."""
    fit = next((fit for fit in reversed(_fits.get()) if _patches.is_installed(fit)), None)
    return await (call.send() if fit is None or not fit.records(call) else fit.send(call))


# The fits that this task is part of, outermost first. A fit that was removed in another context is still listed.
_fits: ContextVar[tuple[ModelCalls, ...]] = ContextVar("distributed_backup_fits", default=())
_under_way: ContextVar[ModelCalls | None] = ContextVar("distributed_backup_request_under_way", default=None)
_patches: Final = SharedPatches(_send)


def _others(fit: ModelCalls) -> tuple[ModelCalls, ...]:
    return tuple(other for other in _fits.get() if other is not fit and _patches.is_installed(other))
