"""Train an example program: replace `build` by your program and `samples` by your data, in this file.

The manifests rely on two things in `main`. The run's directory and the callback's other settings (DISTRIBUTED_BACKUP_*)
come from the environment. And the checkpoints are kept at the end: a pod that starts after the run is complete restores
the final state, saves the program, prints the state and succeeds without training again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import synalinks

from distributed_backup import BackupAndRestore
from distributed_backup.checkpoints.store import CheckpointStore
from distributed_backup.storage import storage_from_url
from distributed_backup.urls import is_redis_url

logger = logging.getLogger("train")


class Question(synalinks.DataModel):  # type: ignore[misc]  # synalinks has no types
    """The input: one field for each key of a row of the data."""

    question: str = synalinks.Field(description="The question")


class Answer(synalinks.DataModel):  # type: ignore[misc]
    """The output, which the reward compares with that of the row."""

    answer: str = synalinks.Field(description="The answer, yes or no")


def language_model() -> Any:
    """Return the model $TRAIN_MODEL, such as openai/gpt-4o-mini, or if it is empty, an offline model."""
    if name := os.environ.get("TRAIN_MODEL"):
        return synalinks.LanguageModel(model=name)
    from distributed_backup.demo.offline_model import OfflineLanguageModel

    return OfflineLanguageModel(latency=float(os.environ.get("TRAIN_LATENCY", "1")))


def samples(part: str) -> tuple[Any, Any]:
    """Return the rows of "training" or "validation" in the JSON file $TRAIN_DATA, or in the demonstration's."""
    data = os.environ.get("TRAIN_DATA")
    text = Path(data).read_text() if data else files("distributed_backup.demo").joinpath("questions.json").read_text()
    rows = json.loads(text)[part]
    x = np.array([Question(question=row["question"]) for row in rows], dtype="object")
    y = np.array([Answer(answer=row["answer"]) for row in rows], dtype="object")
    return x, y


async def build() -> Any:
    """Return the compiled program. It is the same in every pod, as checkpoints require, and seeded."""
    random.seed(7)
    np.random.seed(7)
    inputs = synalinks.Input(data_model=Question)
    outputs = await synalinks.Generator(data_model=Answer, language_model=language_model())(inputs)
    program = synalinks.Program(inputs=inputs, outputs=outputs, name="train", description="Answers questions")
    program.compile(
        optimizer=synalinks.optimizers.RandomFewShot(),
        reward=synalinks.rewards.ExactMatch(in_mask=["answer"]),
        metrics=[synalinks.metrics.MeanMetricWrapper(synalinks.rewards.exact_match)],
    )
    return program


def digest(program: Any) -> str:
    """Return a digest of all that training changes, the states of the random generators included."""
    holders = (program, program.optimizer)
    variables = [variable.get_json() for holder in holders for variable in holder.trainable_variables]
    variables += [variable.get_json() for holder in holders for variable in holder.non_trainable_variables]
    variables += [variable.get_json() for variable in program.metrics_variables]
    kind, words, *rest = np.random.get_state()
    state = [variables, random.getstate(), kind, list(map(int, words)), rest]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def save(program: Any, backup_dir: str) -> None:
    """Save the program and its variables beside the backup: RUN.program.json and RUN.variables.json.

    A reader finds the old file or the new one. All workers may save at once, because their programs are equal.
    """
    if is_redis_url(backup_dir):
        # The final state is the only result here, and `fit` has only logged it if a full server refuses that.
        newest = CheckpointStore(backup_dir, run_id=os.environ["DISTRIBUTED_BACKUP_RUN_ID"]).latest()
        if newest is None or not newest.header.final:
            raise SystemExit("the final state is not in Redis, so this pod must be replaced")
        logger.warning(
            "the program is not saved, because Redis has no files: use distributed-backup checkpoints export"
        )
        return
    directory, run = os.path.split(backup_dir)
    beside = storage_from_url(directory or ".")
    with TemporaryDirectory() as here:
        for write, suffix in ((program.save_variables, "variables.json"), (program.save, "program.json")):
            file = Path(here, f"{run}.{suffix}")
            try:
                write(file)
            except Exception:  # of any class in the program. Another try would fail too, and the training is done
                logger.exception("not saved: %s", file.name)
                continue
            beside.put(file.name, [file.read_bytes()])
            logger.info("saved %s", beside.path_of(file.name))


async def main() -> None:
    """Train from the newest checkpoint to the end. A preemption raises SystemExit with the callback's exit code."""
    backup_dir = os.environ["BACKUP_DIR"]
    epochs = int(os.environ.get("TRAIN_EPOCHS", "10"))
    batch_size = int(os.environ.get("TRAIN_BATCH_SIZE", "4"))
    program = await build()
    x, y = samples("training")
    await program.fit(
        x,
        y,
        validation_data=samples("validation"),
        epochs=epochs,
        batch_size=batch_size,
        validation_batch_size=batch_size,
        verbose=0,
        callbacks=[BackupAndRestore(backup_dir, delete_checkpoint=False)],
    )
    # Before the success of this pod, which may complete the Job. A pod that fails here is replaced, and saves again.
    save(program, backup_dir)
    print(f"final state: epoch={epochs} batch=0 sha256={digest(program)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # A notice leaves `fit` as `Preempted`, a SystemExit. Let it pass, and end nothing by hand: synalinks' last garbage
    # collections take CPU-seconds, which the package leaves out, and it forces the exit with 143 if anything hangs.
    asyncio.run(main())
