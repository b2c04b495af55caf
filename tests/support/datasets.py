"""Data sets that shuffle with the generators that a process shares. Imports synalinks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from synalinks.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter

from tests.support.programs import samples


class Permuted:
    """Permutes its samples for each epoch with numpy.random, when its iterator is made. Its length is not known."""

    def __init__(self, count: int, batch_size: int) -> None:
        self._count, self._batch_size = count, batch_size
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        return self._batches(np.random.permutation(self._count * self._batch_size))

    def _batches(self, order: Any) -> Iterator[Any]:
        x, y = samples(len(order))
        for index in range(self._count):
            chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
            self.read += 1
            yield x[chosen], y[chosen]


class Eager(Permuted):
    """Has a length, so synalinks also makes an iterator at the end of each epoch."""

    def __len__(self) -> int:
        return self._count


class Lazy(Eager):
    """Draws when the first batch is read."""

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class LazyWithRandom(Permuted):
    """Draws from `random` when the first batch is read. Its length is not known."""

    def __iter__(self) -> Iterator[Any]:
        order = list(range(self._count * self._batch_size))
        random.shuffle(order)
        yield from self._batches(np.array(order))


class Buffered(Permuted):
    """Keeps half of its batches in a buffer, and draws one of them at each read."""

    def __iter__(self) -> Iterator[Any]:
        buffer = []
        for batch in self._batches(np.arange(self._count * self._batch_size)):
            buffer.append(batch)
            if len(buffer) > self._count // 2:
                yield buffer.pop(random.randrange(len(buffer)))
        while buffer:
            yield buffer.pop(np.random.randint(len(buffer)))


def generator(count: int, batch_size: int, epochs: int) -> Iterator[Any]:
    """Yield the batches of several epochs once, each epoch in another order."""
    for _ in range(epochs):
        yield from Permuted(count, batch_size)


def shuffled(kind: str, *, count: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """Return the arguments of `fit` for data of this kind: `count` batches an epoch."""
    if kind == "generator":
        return {"x": generator(count, batch_size, epochs), "steps_per_epoch": count}
    if kind.startswith("adapter"):
        x, y = samples(count * batch_size)
        return {"x": ArrayDataAdapter(x, y, shuffle="batch" if "batches" in kind else True, batch_size=batch_size)}
    made = {
        "permuted": Lazy,
        "permuted with random, of unknown length": LazyWithRandom,
        "permuted when its iterator is made": Eager,
        "permuted when its iterator is made, of unknown length": Permuted,
        "shuffle buffer": Buffered,
    }[kind]
    return {"x": made(count, batch_size)}
