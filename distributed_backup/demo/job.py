"""What a process of the demonstration runs: a small synalinks program, its fit, and reports of both.

The program learns which of its own answers to show as examples; its language model is a function of the prompt, so
that two runs with the same seeds end in the same state, and what the demonstration compares means something.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import threading
from importlib.resources import files
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import orjson
import synalinks

from distributed_backup.callback import BackupAndRestore
from distributed_backup.clock import SystemClock
from distributed_backup.demo.messages import Event, Plan, Role
from distributed_backup.demo.offline_model import OfflineLanguageModel
from distributed_backup.position import Position


class Question(synalinks.DataModel):  # type: ignore[misc]  # synalinks has no types
    """A yes-or-no question."""

    question: str = synalinks.Field(description="The question")


class Answer(synalinks.DataModel):  # type: ignore[misc]
    """Its answer."""

    answer: str = synalinks.Field(description="The answer, yes or no")


class Reporter(logging.Handler):
    """Sends the director what this process does; a logging handler, for our package logs its transitions."""

    def __init__(self, sender: Connection, role: Role) -> None:
        super().__init__(logging.INFO)
        self._sender = sender
        self._role = role
        self._clock = SystemClock()
        # Connections may not be written to by two threads at once; the saver and the elector log from theirs.
        self._sending = threading.Lock()
        self.calls = 0

    def report(
        self, kind: str, *, position: Position | None = None, text: str = "", fields: dict[str, str] | None = None
    ) -> None:
        """Send one event."""
        with self._sending:
            self._sender.send(
                Event(
                    at=self._clock.now(),
                    name=self._role.name,
                    life=self._role.life,
                    kind=kind,
                    position=position,
                    calls=self.calls,
                    fields=fields or {},
                    text=text,
                )
            )

    def emit(self, record: logging.LogRecord) -> None:
        """Send what was logged."""
        text = record.getMessage()
        pairs = (word.partition("=") for word in text.split() if "=" in word)
        self.report(text.split(maxsplit=1)[0], text=text, fields={key: value for key, _, value in pairs})

    def called(self) -> None:
        """A call of the language model began."""
        self.calls += 1
        self.report("call")


class CountedLanguageModel(OfflineLanguageModel):
    """An offline language model that tells a reporter of each call before it makes it."""

    reporter: Reporter

    async def _acompletion(self, formatted_messages: Any, **kwargs: Any) -> dict[str, Any]:
        self.reporter.called()
        return await super()._acompletion(formatted_messages, **kwargs)


class Boundaries(synalinks.callbacks.Callback):  # type: ignore[misc]
    """Reports each boundary of the fit, with the position that our package gives it."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter
        self._epoch = self._trained = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 - synalinks' signature, as below
        """An epoch begins."""
        self._epoch, self._trained = epoch, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """A training batch ended."""
        self._trained = batch + 1
        self._reporter.report("boundary", position=Position(self._epoch, self._trained))

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """A validation batch ended."""
        self._reporter.report("boundary", position=Position(self._epoch, self._trained + batch + 1))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
        """An epoch ended."""
        self._reporter.report("boundary", position=Position(epoch + 1))


def run(sender: Connection, plan: Plan, role: Role) -> None:
    """Run one fit to its end, or until it is preempted; the process then exits with the callback's exit code."""
    reporter = Reporter(sender, role)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True)
    logging.getLogger("distributed_backup").addHandler(reporter)
    asyncio.run(_fit(plan, role, reporter))


async def _fit(plan: Plan, role: Role, reporter: Reporter) -> None:
    program = await _build(plan, reporter)
    x, y = _samples("training")
    reporter.report("ready")
    await program.fit(
        x,
        y,
        batch_size=plan.batch_size,
        # synalinks' default draws from an unseeded generator, and no two runs would end alike.
        minibatch_size=None,
        epochs=plan.epochs,
        verbose=0,
        callbacks=[Boundaries(reporter), *_callbacks(plan, role)],
        validation_data=_samples("validation"),
        validation_batch_size=plan.batch_size,
    )
    reporter.report("done", fields=complete_state(program))


def _callbacks(plan: Plan, role: Role) -> list[Any]:
    if role.backup_dir is None:
        return []
    callback = BackupAndRestore(
        role.backup_dir,
        save_freq="epoch",
        delete_checkpoint=not role.keep,
        coordinator=plan.coordination.url,
        run_id=plan.coordination.run_id,
        worker_id=role.name,
        standby=False,
        grace_period=plan.grace_period,
        timings=plan.coordination.timings,
    )
    return [callback]


async def _build(plan: Plan, reporter: Reporter) -> Any:
    random.seed(plan.seed)
    np.random.seed(plan.seed)
    model = CountedLanguageModel(latency=plan.latency)
    model.reporter = reporter
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


def complete_state(program: Any) -> dict[str, str]:
    """A digest of each part of what a run must have in common with an uninterrupted one.

    Read from the program itself, not by the code that saves it: what that forgets must show up as a difference.
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
