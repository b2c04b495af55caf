"""Test that a fit on the directory of another one gets one warning that names what differs, before anything is paid."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import Child

SCENARIOS = "tests.integration.difference_scenarios"

CHANGES = {
    "instructions": "module chain_of_thought (instructions), module generator_chain_of_thought (instructions)",
    "model": "(language_model), ",
    "sampling": "(language_model), ",
    "reward": "(new), reward exact_match",
    "optimizer": "optimizer (nb_max_examples)",
    "data": "data (y)",
}


def result(tmp_path: Path, name: str, *arguments: Any) -> Any:
    with Child(f"{SCENARIOS}:{name}", *arguments, log=tmp_path / "log") as child:
        return child.result()


def test_each_kind_of_difference_gets_one_warning_before_anything_is_paid(tmp_path: Path) -> None:
    """The warning names the part and its setting. An unchanged fit gets none."""
    found = result(tmp_path, "kinds", ["", *CHANGES])
    assert found.pop("") == []
    for change, named in CHANGES.items():
        ((message, calls),) = found[change]
        assert calls == 0
        assert "this fit differs from the one that saved" in message
        assert named in re.sub(r"_\d+", "", message)


def test_what_training_changed_is_no_difference_for_the_next_fit_of_the_process(tmp_path: Path) -> None:
    """The temperature of the optimizer is lowered by a callback. The resume restores it, and warns of nothing."""
    assert result(tmp_path, "refit") == [0.125]


def test_another_process_differs_only_if_its_program_does(tmp_path: Path) -> None:
    """Another hash seed, other automatic names, addresses and credentials are no difference. No credential is saved."""
    root = tmp_path / "run"
    assert result(tmp_path, "part", str(root)) == []
    # A fork has the hash seed of its server, a new interpreter has one of its own.
    command = [sys.executable, "-m", SCENARIOS, str(root)]
    environment = {**os.environ, "PYTHONHASHSEED": "2", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    ((message, calls),) = result(tmp_path, "part", str(root), "instructions", 1)
    assert "chain_of_thought_1 (instructions)" in message
    assert calls == 0
    checkpoints = list(root.glob("*.ckpt"))
    assert checkpoints
    assert not [path for path in checkpoints if b"secret" in path.read_bytes()]
