"""Compute digests of a training state: for boundaries of the journal, and to find the log of a checkpoint.

Equal states give equal digests, whether they were captured now or read from a checkpoint. Synalinks and numpy are not
needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from distributed_backup.checkpoints.format import Body
from distributed_backup.checkpoints.journal_format import Digests
from distributed_backup.checkpoints.state_body import decode_state, encode_variables
from distributed_backup.checks import shown
from distributed_backup.errors import StateError
from distributed_backup.storage.base import Chunks

# Metrics may hold measured times, which differ in a replay.
_WITHOUT_DIGEST: Final = frozenset({"metrics"})


def digests_of(variables: Mapping[str, Chunks] | None, random_states: tuple[Any, Any]) -> Digests:
    """Return a digest of each group of variables, and of the states of `random` and `numpy.random`.

    `variables` is the result of `encode_variables`.
    """
    parts = {name: chunks for name, chunks in (variables or {}).items() if name not in _WITHOUT_DIGEST}
    parts["random"] = [orjson.dumps(random_states, option=orjson.OPT_SERIALIZE_NUMPY)]
    return {name: _digest(chunks) for name, chunks in parts.items()}


def digests_in(body: Body) -> Digests:
    """Return the digests of the state in the body of a checkpoint.

    Raises:
        StateError: The body holds no training state.
    """
    state = decode_state(body)
    try:
        return digests_of(encode_variables(state["variables"]), (state["python_random"], state["numpy_random"]))
    except (AttributeError, LookupError, TypeError) as error:
        raise StateError(f"the checkpoint holds no training state ({shown(error)})") from None


def _digest(chunks: Chunks) -> str:
    made = hashlib.sha256()
    for chunk in chunks:
        made.update(chunk)
    return made.hexdigest()[:16]
