"""Capture and restore the counters of calls, tokens, cost and time, which budgets and token metrics read.

synalinks keeps them outside variables: in attributes `*cumulated_*` of the program and of each language, embedding and
decision model, and as wall-clock time per phase in the program's `PhaseClock`. They are restored to what they were at
the checkpoint. What the process has counted before the fit is overwritten, as it was counted in the interrupted run.

Facts relied on (synalinks 0.10.14): `_collect_language_models` finds decision models and fallbacks too. Counters start
at zero, so only the others are saved.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from synalinks.src.metrics.em_metrics import _collect_embedding_models
from synalinks.src.metrics.lm_metrics import _collect_language_models

logger = logging.getLogger(__name__)

_COUNTER: Final = "cumulated_"


class Counters:
    """The counters of one program and of the models that it reaches, itself or through its reward."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self._owners = [program, *_collect_language_models(program), *_collect_embedding_models(program)]

    def capture(self) -> dict[str, Any]:
        """Return the counters. `restore` takes them."""
        clock = getattr(self._program, "_phase_clock", None)
        return {
            "models": [{"class": type(model).__name__, "counts": _counts(model)} for model in self._owners],
            "seconds": dict(getattr(clock, "_wall", {})),
        }

    def restore(self, saved: dict[str, Any]) -> bool:
        """Set the counters. Return False, after a warning, if the program has other models than the one saved."""
        owners, models = self._owners, saved["models"]
        own, theirs = [type(owner).__name__ for owner in owners], [model["class"] for model in models]
        # The first one is the program. Its class may have another name.
        if own[1:] != theirs[1:]:
            logger.warning(
                "the counters of calls, tokens and cost are not restored: the checkpoint has those of the models %s, "
                "and this program has the models %s",
                theirs[1:],
                own[1:],
            )
            return False
        for owner, model in zip(owners, models, strict=True):
            for name, value in vars(owner).items():
                if _COUNTER in name and not isinstance(value, dict):
                    setattr(owner, name, model["counts"].get(name, type(value)()))
                elif _COUNTER in name:
                    value.clear()
                    value.update(model["counts"].get(name, {}))
        clock = getattr(self._program, "_phase_clock", None)
        if clock is not None:
            clock._wall.update(saved["seconds"])  # noqa: SLF001 - there is no public way, as below
        return True


def _counts(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if _COUNTER in name and value}
