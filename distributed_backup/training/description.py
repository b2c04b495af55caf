"""Describe a fit by short digests, and name what differs between two fits: program, instructions, reward, data.

A part is a module, a reward, a metric, the optimizer or the data. Of each part, the class counts and the settings that
`_SETTINGS` lists, read from attributes of that name. Of a language model, its name and sampling count. What training
changes is state and does not count: `Generator.instructions` keeps what the user gave, and an object counts as its
first fit in this process found it.

A difference that is none would teach people to ignore the warning, so what may differ between two processes of one
program is left out: addresses, long numbers, dates, absolute paths, counters in automatic names, titles of schemas. Two
fits under different versions of synalinks or pydantic are not compared, because defaults and schemas may differ.

No credential is described: URLs, headers, keyword arguments and settings under other names are never read.

The limits: a function counts by its name. Settings under other names are not compared. Two modules without a `name`
that changed places look as before. Samples of a generator are not read, see `fingerprint`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np

# Raise this when `_SETTINGS` or the form of a digest changes: then earlier checkpoints are not compared.
_VERSION: Final = 1
_SETTINGS: Final = frozenset(
    {
        # What a language model reads.
        *("instructions", "final_instructions", "map_instructions", "reduce_instructions", "seed_instructions"),
        *("examples", "prompt", "system_prompt", "prompt_template", "question", "labels", "rubrics", "schema"),
        *("use_inputs_schema", "use_outputs_schema", "use_chain_of_thought"),
        # How it answers.
        *("model", "temperature", "max_tokens", "top_p", "top_k", "reasoning_effort"),
        # What a module or an agent does.
        *("fn", "func", "function", "max_iterations", "autonomous", "return_inputs", "k", "threshold"),
        # What a reward or a metric measures.
        *("in_mask", "out_mask", "in_mask_pattern", "out_mask_pattern", "reduction", "weights", "average", "beta"),
        # How an optimizer searches.
        *("population_size", "reward_uncertainty", "merging_rate", "mutation_temperature", "crossover_temperature"),
        *("selection", "selection_temperature", "sampling", "sampling_temperature", "algorithm", "k_nearest_fitter"),
        *("nb_min_examples", "nb_max_examples", "nb_best_predictions", "nb_worst_predictions", "nb_hard_examples"),
        "hard_example_min_observations",
    }
)
_MODELS: Final = frozenset({"LanguageModel", "EmbeddingModel", "DecisionModel"})
_VOLATILE: Final = re.compile(
    r"""
    0x[0-9a-f]{6,} | [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12} | \d{9,}  # an address, a UUID, an id or Unix time
    | \d{4}-\d\d-\d\d | \d{1,2}:\d\d(?::\d\d)?(?:\.\d+)?               # a date, a time of day
    | (?<![\w.])(?:/|[a-z]:\\)[\w.+~-]+(?:[/\\][\w.+~-]*)+            # an absolute path
    | (?<=[a-z])_\d+(?!\w)                                           # the counter of an automatic name
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Values of a longer list that count, evenly spaced.
_MAX_VALUES: Final = 1024

# A name and the digests of its settings.
Part = tuple[str, Mapping[str, str]]

_described: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
"""The settings of each object as its first fit in this process found it: a later one may find what training changed."""


def describe(program: Any, data: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the description of a fit as JSON. `data` holds its data as `fingerprint.data_parts` returns it."""
    # Imported here, so that comparing needs no synalinks.
    import pydantic
    import synalinks

    parts = [(name, _first_settings(item)) for name, item in _items(program)]
    parts.append(("data", {name: _digest(content) for name, content in data.items()}))
    return {"versions": [_VERSION, synalinks.__version__, pydantic.VERSION], "parts": parts}


def differences(own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return what differs, for people: "module generator (instructions, language_model)".

    Nothing differs if `saved` is empty, as in a checkpoint of an earlier version.
    """
    if own.get("versions") != saved.get("versions"):
        return []
    mine, theirs = list(own.get("parts", ())), list(saved.get("parts", ()))
    _take_pairs(mine, theirs, lambda part: (_stable(part[0]), part[1]))
    changed = _take_pairs(mine, theirs, lambda part: _stable(part[0]))
    # A part that has another name is the same one. `variables` reports that where it matters.
    _take_pairs(mine, theirs, lambda part: part[1])
    return [
        *(f"{part[0]} ({', '.join(_unequal(part[1], other[1]))})" for part, other in changed),
        *(f"{name} (new)" for name, _ in mine),
        *(f"{name} (missing)" for name, _ in theirs),
    ]


def _take_pairs(mine: list[Part], theirs: list[Part], key: Callable[[Part], Any]) -> list[tuple[Part, Part]]:
    """Remove and return the pairs of parts that have the same key."""
    pairs = []
    for part in list(mine):
        other = next((other for other in theirs if key(other) == key(part)), None)
        if other is not None:
            pairs.append((part, other))
            mine.remove(part)
            theirs.remove(other)
    return pairs


def _unequal(own: Mapping[str, str], saved: Mapping[str, str]) -> list[str]:
    return [name for name in {**own, **saved} if own.get(name) != saved.get(name)]


# -------------------------------------------------------------------- the parts of a fit


def _items(program: Any) -> Iterator[tuple[str, Any]]:
    """Yield each part but the data, with its name for people."""
    from synalinks.src import tree
    from synalinks.src.metrics.metrics_utils import model_holders

    for item in model_holders(program):
        if not _is_model(item):  # a model is described by the parts that hold it
            kind = "module" if hasattr(item, "_flatten_modules") else "reward"
            yield f"{kind} {_name(item)}", item
    metrics = getattr(program, "_compile_metrics", None)
    for item in tree.flatten(getattr(metrics, "_user_metrics", ())):
        yield f"metric {_name(item)}", item
    yield "optimizer", program.optimizer


def _name(item: Any) -> str:
    return str(item if isinstance(item, str) else getattr(item, "name", type(item).__name__))


def _stable(name: str) -> str:
    """Remove the counters of automatic names: `generator_2` tells how many the process had made before."""
    return re.sub(r"_\d+", "", name)


def _first_settings(item: Any) -> dict[str, str]:
    settings = _settings(item)
    with suppress(Exception):  # a name has no weak reference, and an object of the user may have no hash
        return _described.setdefault(item, settings)
    return settings


def _settings(item: Any) -> dict[str, str]:
    """Return the digests of the settings that count, are not empty and not False."""
    return {name: _digest(json.dumps(value, sort_keys=True).encode()) for name, value in _plain_settings(item).items()}


def _plain_settings(item: Any) -> dict[str, Any]:
    # A reward or metric may be a function, which has a name of its own.
    found: dict[str, Any] = {"class": item.__qualname__ if inspect.isroutine(item) else type(item).__name__}
    attributes = getattr(item, "__dict__", {})
    if _is_model(item):
        attributes = {**attributes.get("default_kwargs", {}), **attributes}
    for attribute, value in attributes.items():
        name = attribute.lstrip("_")
        if name in _SETTINGS or _is_model(value):
            with suppress(Exception):  # a setting of the user's may be anything, and must not end the training
                found[name] = _plain(value)
    return {name: value for name, value in found.items() if value is not False and value not in (None, "", [], {})}


def _is_model(value: Any) -> bool:
    return any(kind.__name__ in _MODELS for kind in type(value).__mro__)


def _plain(value: Any) -> Any:
    """Return a value as JSON that is the same in each process of one program."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _VOLATILE.sub("#", value)
    return _plain_items(value) if isinstance(value, dict | list | tuple | set | frozenset) else _plain_object(value)


def _plain_items(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key != "title"}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value[:: len(value) // _MAX_VALUES + 1]]
    return sorted(json.dumps(_plain(item), sort_keys=True) for item in value)


def _plain_object(value: Any) -> Any:
    if _is_model(value):
        return _plain_settings(value)
    if hasattr(value, "get_json") and not isinstance(value, type):
        return _plain(value.get_json())
    return getattr(value, "__qualname__", type(value).__name__)


def _digest(content: bytes) -> str:
    # 32 bits tell two values apart, and are too few to recover one.
    return hashlib.blake2b(content, digest_size=4).hexdigest()
