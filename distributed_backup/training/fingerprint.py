"""Compute a fingerprint of a fit's data pipeline, to detect that it has changed between two runs.

Reading a generator consumes its samples, so a changed generator is not detected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import orjson

_MAX_SAMPLES: Final = 1024


def fingerprint(inputs: Mapping[str, Any] | None, params: Mapping[str, Any]) -> str:
    """Return 32 hexadecimal digits that depend on batch sizes, numbers of samples, and samples.

    `inputs` are `x`, `y`, `val_x` and `val_y` of the fit, `params` the parameters that synalinks gives to callbacks. An
    array counts with up to 1,024 evenly spaced samples, a generator with its type and its number of steps.
    """
    sizes = ("batch_size", "steps", "validation_batch_size", "validation_steps", "train_size", "val_size")
    digest = hashlib.blake2b(digest_size=16)
    digest.update(orjson.dumps({name: params.get(name) for name in sizes}, option=orjson.OPT_SERIALIZE_NUMPY))
    for name, value in sorted((inputs or {}).items()):
        digest.update(_dumped([name, list(_samples(value))]))
    return digest.hexdigest()


def batch_content(batch: Any) -> bytes:
    """Return bytes that depend on the samples of one batch, a tuple of arrays."""
    return _dumped([list(_samples(part)) for part in batch])


def _dumped(value: list[Any]) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_name_of_type)
    except TypeError:
        # Integers beyond 64 bits, lone surrogates and keys that are not strings. Keys that are tuples are left out.
        return json.dumps(value, default=_name_of_type, skipkeys=True).encode()


def _samples(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple) and value and all(isinstance(item, np.ndarray) for item in value):
        return [list(_samples(item)) for item in value]
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")) or isinstance(value, dict):
        return [type(value).__name__]
    indices = np.linspace(0, len(value) - 1, _MAX_SAMPLES, dtype=int) if len(value) else ()
    return [_plain_sample(value[index]) for index in sorted({int(index) for index in indices})]


def _plain_sample(sample: Any) -> Any:
    return sample.get_json() if hasattr(sample, "get_json") else sample


def _name_of_type(value: Any) -> str:
    return type(value).__name__
