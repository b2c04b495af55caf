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

# Metrics may hold measured times, which differ in a replay.
_WITHOUT_DIGEST: Final = frozenset({"metrics"})


def digests_of(variables: Mapping[str, bytes] | None, random_states: tuple[Any, Any]) -> Digests:
    """Return a digest of each group of variables, and of the states of `random` and `numpy.random`.

    `variables` is the result of `encode_variables`.
    """
    parts = {name: text for name, text in (variables or {}).items() if name not in _WITHOUT_DIGEST}
    parts["random"] = orjson.dumps(random_states, option=orjson.OPT_SERIALIZE_NUMPY)
    return {name: hashlib.sha256(text).hexdigest()[:16] for name, text in parts.items()}


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
