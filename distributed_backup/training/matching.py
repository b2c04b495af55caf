"""Match the variables of a program with those of a checkpoint, by group, path and schema.

Two parts of a path differ between processes, and are left out of the comparison:

- the counter of an automatic name: `generator_2` tells how many unnamed generators the process had made before
- a number of nine or more digits, such as an `id(...)`

Variables that are equal without these parts are matched by their order. If no name of a group is in the checkpoint,
the group is matched by its order, as synalinks does: the same program may have been built under other names. Anything
else is refused.

Limit: two modules without a `name` that changed places in the source look as before, if their schemas are equal.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from distributed_backup.errors import ProgramMismatchError

# The path and a digest of the schema of each variable, by group.
Layout = Mapping[str, Sequence[Mapping[str, str]]]

# An id has ten digits or more, a Unix time ten. A date has eight, and is part of a name.
_ID: Final = re.compile(r"\d{9,}")
_UNKNOWN: Final = (
    "so it is unknown which values belong to which module. Give each module the name that it has in the checkpoint, or "
    "use another backup_dir"
)
_NAMES_DIFFER: Final = f"some names differ, {_UNKNOWN}"
_ORDER_DIFFERS: Final = f"modules without a name were made in another order, {_UNKNOWN}"
_SCHEMAS_DIFFER: Final = "restore with the program that made it, or use another backup_dir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """For each group the index in the checkpoint of each variable, and the own and saved paths of renamed ones."""

    places: dict[str, list[int]]
    renamed: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variable:
    path: str
    schema: str
    name: str  # the part of the path that is the same in each process
    counters: tuple[int, ...]  # of the automatic names in the path


def match(own: Layout, saved: Layout, *, automatic: Collection[str], schema_ids: Sequence[str]) -> Match:
    """Find each variable of the program in the checkpoint.

    `automatic` are the automatic names in the program without counters, `schema_ids` the ids of the schemas of its
    trainable variables.

    Raises:
        ProgramMismatchError: A variable has no counterpart, or it is unknown which one it has.
    """
    counter = _counter_pattern(automatic)
    found = Match(places={}, renamed=[])
    for group, variables in own.items():
        owners: tuple[dict[str, str], dict[str, str]] = ({}, {})
        if group == "optimizer_trainable":
            owners = _owners(schema_ids, saved.get(group, ()), found.places["trainable"])
        _match_group(
            group,
            [_parse(item, counter, owners[0]) for item in variables],
            [_parse(item, counter, owners[1]) for item in saved.get(group, ())],
            found,
        )
    return found


def _counter_pattern(automatic: Collection[str]) -> re.Pattern[str]:
    """Return the pattern of an automatic name in a path.

    Names of inner modules and of variables contain it: `generator_chain_of_thought_1`. `SequentialPlanSynthesis` names
    its variable `statesequential_plan_synthesis_1`.
    """
    # The longest first, for names such as `generator` and `generator_pool`.
    names = "|".join(re.escape(name) for name in sorted(automatic, key=len, reverse=True))
    return re.compile(rf"(?:\b|(?<=_)|(?<=/state))({names or '(?!)'})(?:_(\d+))?(?=_|/|$)")


def _owners(
    schema_ids: Sequence[str], saved: Sequence[Mapping[str, str]], places: Sequence[int]
) -> tuple[dict[str, str], dict[str, str]]:
    """Replace the ids in OMEGA's paths, own and saved, by the index of the trainable variable in the program.

    `OMEGA.build` makes its modules in the order of the trainable variables. If two of these share a schema object, the
    order is no evidence, and the ids are left out.
    """
    saved_ids = list(dict.fromkeys(_ID.findall(" ".join(item["path"] for item in saved))))
    if not len(saved_ids) == len(set(schema_ids)) == len(schema_ids):
        return {}, {}
    return (
        {schema_id: str(index) for index, schema_id in enumerate(schema_ids)},
        {saved_ids[place]: str(index) for index, place in enumerate(places)},
    )


def _parse(item: Mapping[str, str], counter: re.Pattern[str], owners: Mapping[str, str]) -> _Variable:
    name = _ID.sub(lambda found: owners.get(found[0], "#"), item["path"])
    return _Variable(
        path=item["path"],
        schema=item["schema"],
        name=counter.sub(r"\1", name),
        counters=tuple(int(number or 0) for _, number in counter.findall(name)),
    )


def _match_group(group: str, own: list[_Variable], saved: list[_Variable], found: Match) -> None:
    alike, saved_alike = _alike(own), _alike(saved)
    if {key: len(items) for key, items in alike.items()} == {key: len(items) for key, items in saved_alike.items()}:
        places = [0] * len(own)
        for key, indices in alike.items():
            if (pairs := _pairs(own, indices, saved, saved_alike[key])) is None:
                _refuse(group, own, saved, _ORDER_DIFFERS)
            for index, place in pairs:
                places[index] = place
        found.places[group] = places
    elif _is_renamed(own, saved):
        found.places[group] = list(range(len(own)))
        found.renamed.extend((item.path, other.path) for item, other in zip(own, saved, strict=True))
    else:
        _refuse(group, own, saved, _NAMES_DIFFER if _do_only_names_differ(own, saved) else _SCHEMAS_DIFFER)


def _alike(variables: list[_Variable]) -> dict[tuple[str, str], list[int]]:
    """Return the indices of the variables by their name and schema."""
    indices: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(variables):
        indices[item.name, item.schema].append(index)
    return indices


def _pairs(
    own: list[_Variable], indices: list[int], saved: list[_Variable], places: list[int]
) -> Iterable[tuple[int, int]] | None:
    """Pair variables that are alike. Return None if the counters of their automatic names contradict their order."""
    if _order_of_making(own, indices) != _order_of_making(saved, places):
        return None
    if sorted(own[index].path for index in indices) == sorted(saved[place].path for place in places):
        # The numbers in the paths did not change, so they are not ids of a process.
        indices = sorted(indices, key=lambda index: own[index].path)
        places = sorted(places, key=lambda place: saved[place].path)
    return zip(indices, places, strict=True)


def _order_of_making(variables: list[_Variable], indices: list[int]) -> list[int]:
    return sorted(range(len(indices)), key=lambda number: variables[indices[number]].counters)


def _is_renamed(own: list[_Variable], saved: list[_Variable]) -> bool:
    """Whether the two have no name in common, and the same schemas in the same order."""
    schemas, saved_schemas = ([item.schema for item in side] for side in (own, saved))
    return {item.name for item in own}.isdisjoint(item.name for item in saved) and schemas == saved_schemas


def _do_only_names_differ(own: list[_Variable], saved: list[_Variable]) -> bool:
    names, saved_names = (Counter(item.name for item in side) for side in (own, saved))
    schemas, saved_schemas = (Counter(item.schema for item in side) for side in (own, saved))
    return names != saved_names and schemas == saved_schemas


def _refuse(group: str, own: list[_Variable], saved: list[_Variable], advice: str) -> NoReturn:
    paths, saved_paths = ([f"{item.path}#{item.schema}" for item in side] for side in (own, saved))
    raise ProgramMismatchError(
        f"the program does not fit the checkpoint: its {group} variables are {paths}, the checkpoint's are "
        f"{saved_paths} (path#schema); {advice}"
    )
