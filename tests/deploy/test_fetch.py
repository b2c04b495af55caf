"""deploy/fetch.yaml and its command in deploy/README.md bring the files that train.py saves to the user's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from tests.deploy.contract import ANY_POD, CONTAINER_SECURITY, POD_SECURITY, WORKER_USER
from tests.deploy.facts import DEPLOY, PINNED
from tests.deploy.model import selects
from tests.deploy.renderings import at, render
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems

FETCH = yaml.safe_load((DEPLOY / "fetch.yaml").read_text())
README = (DEPLOY / "README.md").read_text()


def test_the_pod_mounts_the_claim_of_the_job_read_only_with_the_job_s_security() -> None:
    assert [schema_problems([FETCH], version) for version in (OLDEST, NEWEST)] == [[], []]
    pod, [container] = FETCH["spec"], FETCH["spec"]["containers"]
    assert pod["volumes"] == [{"name": "backup", "persistentVolumeClaim": {"claimName": "backup"}}]
    assert container["volumeMounts"] == [{"name": "backup", "mountPath": "/backup", "readOnly": True}]
    assert ANY_POD.items() <= pod.items()
    assert pod["securityContext"] == POD_SECURITY | WORKER_USER
    assert container["securityContext"] == CONTAINER_SECURITY
    assert PINNED.fullmatch(container["image"])


def test_the_policy_that_denies_all_traffic_is_for_this_pod_too() -> None:
    selector = at(render("one-worker"), "NetworkPolicy/train-default-deny", "spec.podSelector")
    assert selects(selector, FETCH["metadata"]["labels"])


def test_the_command_copies_the_saved_programs_and_no_checkpoint(tmp_path: Path) -> None:
    """Its part in the pod runs in a directory as the volume is, its part on the user's machine in another."""
    [(there, here)] = re.findall(r"kubectl exec fetch -- sh -c '(.*?)' \| (tar [^;&]*)", README)
    volume, user = tmp_path / "volume", tmp_path / "user"
    for name in ("1/0000000001-00000000-00000000.ckpt", "1.program.json", "1.variables.json", "data.json"):
        (volume / name).parent.mkdir(parents=True, exist_ok=True)
        (volume / name).write_text(name)
    user.mkdir()
    packed = subprocess.run(["sh", "-c", there], cwd=volume, capture_output=True, check=True).stdout
    subprocess.run(["sh", "-c", here], cwd=user, input=packed, check=True)
    assert {path.name: path.read_text() for path in user.iterdir()} == {
        name: name for name in ("1.program.json", "1.variables.json")
    }
    assert FETCH["spec"]["containers"][0]["workingDir"] == "/backup"
