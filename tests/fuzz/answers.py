"""What training restores: recorded answers of models, and the state of a fit. Imports synalinks."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import orjson
import synalinks
from litellm.types.utils import EmbeddingResponse, ModelResponse

from distributed_backup.checkpoints.format import Checkpoint, CheckpointHeader
from distributed_backup.checkpoints.state_body import decode_state
from distributed_backup.errors import BackupError
from distributed_backup.training.codec import UnrecordableError
from distributed_backup.training.data_stream import is_same_data
from distributed_backup.training.fit_start import fit_start
from distributed_backup.training.responses import RESPONSES, encode
from distributed_backup.training.state import TrainingState
from distributed_backup.worker.start_point import StartPoint
from tests.fuzz.engine import Parser
from tests.fuzz.files import JSON_MEMORY
from tests.support.programs import build_program

# A state that was applied changes the program, so it is made anew after so many inputs.
_APPLIED_EACH: Final = 200


class _Fit:
    """A program that states are applied to."""

    def __init__(self) -> None:
        self._applied = 0
        self._state: TrainingState | None = None

    def state(self) -> TrainingState:
        """Return the state of a program. It is another one now and then."""
        if self._state is None or self._applied >= _APPLIED_EACH:
            self._state, self._applied = asyncio.run(_built()), 0
        self._applied += 1
        return self._state


async def _built() -> TrainingState:
    program, _ = await build_program()
    state = TrainingState(program, [random.Random(5), {"seen": [1, (2, 3)]}], [synalinks.callbacks.EarlyStopping()])
    await state.build()
    return state


_fit: Final = _Fit()
_HEADER: Final = CheckpointHeader(
    run_id="job-42", term=1, epoch=1, batch=3, worker_id="w", created_at="", data="d", length=0, digest=""
)


def _apply(data: bytes) -> None:
    """Resume a fit from the body of a checkpoint, as far as its state goes."""
    state = _fit.state()
    loop = state.loop_state(data)
    start = StartPoint(checkpoint=Checkpoint(header=_HEADER, body=data), term=1)
    fit_start(start, loop, data="d", description=_DESCRIPTION, params={"epochs": 3})
    is_same_data(loop.get("data", {}), {"steps": 1, "digest": "x"})
    state.apply(data)
    state.apply_final(data)


_DESCRIPTION: Final[dict[str, Any]] = {
    "versions": ["0.3"],
    "parts": [["module generator_1", {"class": "ab", "x": "1"}]],
}
_LOOP: Final[dict[str, Any]] = {
    "trained": 3,
    "logs": {"reward": 0.5},
    "batch_logs": {},
    "stop_training": False,
    "minibatch_seed": 5,
    "data": {"first_epoch": 0, "steps": 3, "digest": "x", "draws": [[0, ["AAAA", 0, 0.0, "AAAA", 1, 0, 0.0]]]},
    "next_data": {},
    "description": {**_DESCRIPTION, "parts": [["module generator_2", {"class": "ab", "x": "2"}], ["data", {}]]},
}


def _bodies() -> tuple[bytes, ...]:
    state = asyncio.run(_built())
    body = state.capture(_LOOP)
    # The third one is as version 0.3 wrote it.
    return b"".join(body), b"".join(state.capture_final(body)), orjson.dumps(decode_state(body))


def _answers() -> tuple[bytes, ...]:
    message = {"role": "assistant", "content": "yes", "tool_calls": None}
    response = ModelResponse(choices=[{"index": 0, "message": message, "finish_reason": "stop"}], model="m")
    embedding = EmbeddingResponse(model="m", data=[{"embedding": [0.1, 0.2], "index": 0, "object": "embedding"}])
    return tuple(map(encode, (response, embedding, {"plain": [1, (2, b"x")]}, "half \ud83d")))


PARSERS: Final = (
    Parser(
        name="recorded answer",
        seeds=_answers(),
        call=RESPONSES.decode,
        ours=(UnrecordableError,),
        memory=JSON_MEMORY,
    ),
    Parser(
        name="recorded stream",
        seeds=(b"[" + b",".join(_answers()) + b"]",),
        call=RESPONSES.decode_stream,
        ours=(UnrecordableError,),
        memory=JSON_MEMORY,
    ),
    Parser(name="state of a fit", seeds=_bodies(), call=_apply, ours=(BackupError,), memory=JSON_MEMORY),
)
