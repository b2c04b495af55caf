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
_SIZES: Final = ("batch_size", "steps", "validation_batch_size", "validation_steps", "train_size", "val_size")


def fingerprint(data: Mapping[str, bytes]) -> str:
    """Return 32 hexadecimal digits that depend on batch sizes, numbers of samples, and samples, see `data_parts`."""
    sizes = {name: orjson.loads(data[name]) for name in _SIZES}
    digest = hashlib.blake2b(orjson.dumps(sizes), digest_size=16)
    for name in sorted(data.keys() - sizes.keys()):
        digest.update(data[name])
    return digest.hexdigest()


def data_parts(inputs: Mapping[str, Any] | None, params: Mapping[str, Any]) -> dict[str, bytes]:
    """Return bytes that depend on each part of the data: on the samples of each input, and on each size.

    `inputs` are `x`, `y`, `val_x` and `val_y` of the fit, `params` the parameters that synalinks gives to callbacks. An
    array or list counts with up to 1,024 evenly spaced samples. Other data counts with its type and number of steps.
    """
    samples = {name: _dumped([name, _samples_in_memory(value)]) for name, value in (inputs or {}).items()}
    return samples | {name: orjson.dumps(params.get(name), option=orjson.OPT_SERIALIZE_NUMPY) for name in _SIZES}


def batch_content(batch: Any) -> bytes:
    """Return bytes that depend on the samples of one batch, a tuple of arrays."""
    return _dumped([list(_samples(part)) for part in batch])


def _dumped(value: list[Any]) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, default=_name_of_type)
    except TypeError:
        # Integers beyond 64 bits, lone surrogates and keys that are not strings. Keys that are tuples are left out.
        return json.dumps(value, default=_name_of_type, skipkeys=True).encode()


def _samples_in_memory(value: Any) -> list[Any]:
    """Return the samples that count. To read another object's samples may load them, or draw random numbers."""
    in_memory = isinstance(value, list | tuple) or hasattr(value, "__array__")
    return list(_samples(value)) if in_memory else [type(value).__name__]


def _samples(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple) and value and all(isinstance(item, np.ndarray) for item in value):
        return [list(_samples(item)) for item in value]
    if hasattr(value, "__array__"):
        value = np.atleast_1d(value)
    if not (hasattr(value, "__len__") and hasattr(value, "__getitem__")) or isinstance(value, dict):
        return [type(value).__name__]
    indices = np.linspace(0, len(value) - 1, _MAX_SAMPLES, dtype=int) if len(value) else ()
    return [_plain_sample(value[index]) for index in sorted({int(index) for index in indices})]


def _plain_sample(sample: Any) -> Any:
    return sample.get_json() if hasattr(sample, "get_json") else sample


def _name_of_type(value: Any) -> str:
    return type(value).__name__
