"""The program of each process: a small synalinks program, its fit, and the messages about both.

The program learns which of its own answers to show as examples. Its language model is a function of the prompt, so
two runs with the same seeds make the same calls and end in the same state. The verdict compares both.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import threading
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import synalinks

from distributed_backup.callback import BackupAndRestore
from distributed_backup.clock import SystemClock
from distributed_backup.demo.messages import OwnKind, Plan, ProcessSpec
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.observability.events import Event, Kind, Sink


class Question(synalinks.DataModel):  # type: ignore[misc]  # synalinks has no types
    """A yes-or-no question."""

    question: str = synalinks.Field(description="The question")


class Answer(synalinks.DataModel):  # type: ignore[misc]
    """The answer to a question."""

    answer: str = synalinks.Field(description="The answer, yes or no")


class MessageSender:
    """Sends messages to the parent process, and the worker's events among them. Callable from any thread."""

    def __init__(self, connection: Connection, spec: ProcessSpec) -> None:
        self._connection = connection
        self._spec = spec
        self._clock = SystemClock()
        # A connection takes one writer at a time. The saver and the elector report from their own threads.
        self._lock = threading.Lock()

    def send(self, kind: OwnKind | Kind, /, **fields: Any) -> None:
        """Send one message, with the present instant."""
        with self._lock:
            self._connection.send(self._spec.message(kind, at=self._clock.now(), fields=fields))

    def emit(self, event: Event) -> None:
        """Send an event of the worker."""
        self.send(event.kind, **event.fields)

    def close(self, timeout: float) -> None:
        """Do nothing: the pipe ends with the process."""


class ObservedBackup(BackupAndRestore):
    """The callback under demonstration. The parent process receives its events."""

    def __init__(self, sender: MessageSender, backup_dir: Path, **options: Any) -> None:
        super().__init__(backup_dir, **options)
        self._sender = sender

    def _event_sinks(self) -> tuple[Sink, ...]:
        return (self._sender,)


class CountedLanguageModel(OfflineLanguageModel):
    """An offline language model that reports each call to `sender`, before it and when the model has answered.

    The journal is above it: an answer from the journal is no call.
    """

    sender: MessageSender

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        self.sender.send("asked")
        response = await super()._acompletion(formatted_messages, **kwargs)
        self.sender.send("answered", request=hashlib.sha256(orjson.dumps(formatted_messages)).hexdigest())
        return response


class BoundaryReporter(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Reports each boundary of the fit. Positions count as those of checkpoints."""

    def __init__(self, sender: MessageSender) -> None:
        super().__init__()
        self._sender = sender
        self._epoch = self._trained = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - synalinks' signature, as below
        """Note the epoch."""
        self._epoch, self._trained = epoch, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Report a training batch."""
        self._trained = batch + 1
        self._sender.send("boundary", epoch=self._epoch, batch=self._trained)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Report a validation batch."""
        self._sender.send("boundary", epoch=self._epoch, batch=self._trained + batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Report an epoch."""
        self._sender.send("boundary", epoch=epoch + 1, batch=0)


def run(connection: Connection, plan: Plan, spec: ProcessSpec) -> None:
    """Run one fit until it is complete or preempted. A preemption exits with the callback's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    asyncio.run(_fit(plan, spec, MessageSender(connection, spec)))


async def _fit(plan: Plan, spec: ProcessSpec, sender: MessageSender) -> None:
    program = await _build(plan, sender)
    callbacks: list[synalinks.callbacks.Callback] = [BoundaryReporter(sender)]
    if spec.backup_dir is not None:
        callbacks.append(_backup(plan, spec, sender, spec.backup_dir))
    x, y = _samples("training")
    sender.send("ready")
    await program.fit(
        x,
        y,
        batch_size=plan.batch_size,
        # The default of synalinks draws from an unseeded generator: two runs would end in different states.
        minibatch_size=None,
        epochs=plan.epochs,
        verbose=0,
        callbacks=callbacks,
        validation_data=_samples("validation"),
        validation_batch_size=plan.batch_size,
    )
    sender.send("completed", **state_digests(program))


def _backup(plan: Plan, spec: ProcessSpec, sender: MessageSender, backup_dir: Path) -> ObservedBackup:
    return ObservedBackup(
        sender,
        backup_dir,
        save_freq="epoch",
        delete_checkpoint=not spec.keep,
        coordinator=plan.coordination.url,
        run_id=plan.coordination.run_id,
        worker_id=spec.name,
        standby=False,
        grace_period=plan.grace_period,
        timings=plan.coordination.timings,
    )


async def _build(plan: Plan, sender: MessageSender) -> Any:
    random.seed(plan.seed)
    np.random.seed(plan.seed)
    model = CountedLanguageModel(latency=plan.latency)
    model.sender = sender
    inputs = synalinks.Input(data_model=Question)
    outputs = await synalinks.Generator(data_model=Answer, language_model=model)(inputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="quiz", description="Answers questions")
    program.compile(
        optimizer=synalinks.optimizers.RandomFewShot(),
        reward=synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=[synalinks.metrics.MeanMetricWrapper(synalinks.rewards.exact_match)],
    )
    return program


def _samples(part: str) -> tuple[Any, Any]:
    rows = orjson.loads(files("distributed_backup.demo").joinpath("questions.json").read_bytes())[part]
    x = np.array([Question(question=row["question"]) for row in rows], dtype="object")
    y = np.array([Answer(answer=row["answer"]) for row in rows], dtype="object")
    return x, y


def state_digests(program: Any) -> dict[str, str]:
    """Return a digest of each part of the state that a run must share with an uninterrupted one.

    It reads the program itself: a part that the callback forgets to save shows as a difference.
    """
    optimizer = program.optimizer
    groups = {
        "program_trainable": program.trainable_variables,
        "program_non_trainable": program.non_trainable_variables,
        "metrics": program.metrics_variables,
        "optimizer_trainable": optimizer.trainable_variables,
        "optimizer_non_trainable": optimizer.non_trainable_variables,
    }
    parts: dict[str, Any] = {name: [item.get_json() for item in group] for name, group in groups.items()}
    parts["python_random"] = random.getstate()
    parts["numpy_random"] = np.random.get_state()
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS
    return {name: hashlib.sha256(orjson.dumps(part, option=option)).hexdigest() for name, part in parts.items()}
