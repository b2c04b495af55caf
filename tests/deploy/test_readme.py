"""deploy/README.md: its commands and files exist, its overlays build, and its tables name what exists."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.contract import problems
from tests.deploy.facts import DEPLOY, ROOT, is_command, job_variables, package_variables
from tests.deploy.model import Manifest
from tests.deploy.renderings import COMPONENTS, OVERLAYS, at, kustomized, render
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems

README = (DEPLOY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
[[MINE], [CLASS], IN_REDIS] = (list(yaml.safe_load_all(block)) for block in blocks("yaml"))


def first_column(heading: str) -> list[str]:
    """Return the first column of the table that begins with `heading`."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def built(tmp_path: Path, overlay: dict[str, Any]) -> list[Manifest]:
    """Build an overlay `mine` in a copy of deploy/ and return its objects."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(json.dumps(overlay))
    (mine / "password.env").write_text("password=abc")
    return [item for item in yaml.load_all(kustomized(mine), Loader=yaml.CSafeLoader) if item]


def test_every_command_names_files_overlays_and_commands_that_exist() -> None:
    """Overlays, paths below deploy/ and commands of the CLI are checked, arguments of kubectl and docker are not."""
    applied = [re.findall(r"kubectl (?:apply -k|kustomize) deploy/overlays/(\S+)", line) for line in COMMANDS]
    assert {name for names in applied for name in names} <= {*OVERLAYS, "mine"}
    for line in COMMANDS:
        assert line.split(maxsplit=1)[0] in {"docker", "echo", "kind", "kubectl", "until", "uv"}
        for word in line.split():
            path = word.strip("'\"").split("=")[0]
            if path.startswith("deploy/") and "/mine" not in path:
                assert (ROOT / path).exists(), path
        for command in re.findall(r"distributed-backup ([a-z][^']*)", line):
            assert is_command(command.split()), command


def test_the_overlay_for_users_builds_and_keeps_the_contract(tmp_path: Path) -> None:
    """It has their image, password, values and namespace."""
    manifests = built(tmp_path, MINE)
    assert problems(manifests) == []
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    worker = at(manifests, "Job/train", "spec.template.spec.containers.0")
    assert worker["image"] == "registry.example.com/team/distributed-backup-train:0.3.0"
    assert at(manifests, "Secret/valkey", "data") == {"password": "YWJj"}
    assert at(manifests, "ConfigMap/train", "data")["TRAIN_MODEL"] == "openai/gpt-4o-mini"
    assert {item["metadata"].get("namespace") for item in manifests if item["kind"] != "StorageClass"} == {"training"}


def test_the_patch_that_keeps_checkpoints_in_redis_applies(tmp_path: Path) -> None:
    """Workers claim no volume, the order of the variables is right, and the server's disk outlives its pod."""
    below = {"resources": ["../standby"], "components": ["../../components/bucket"]}
    overlay = below | {"patches": [{"patch": json.dumps(patch)} for patch in IN_REDIS]}
    manifests = built(tmp_path, overlay)
    assert not [item for item in manifests if item["kind"] == "PersistentVolumeClaim"]
    assert problems(manifests) == []
    directory = at(manifests, "Job/train", "spec.template.spec.containers.0.env.[BACKUP_DIR].value")
    assert directory == "$(DISTRIBUTED_BACKUP_COORDINATOR)"
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    server = at(manifests, "StatefulSet/valkey", "spec")
    assert not server["template"]["spec"].get("volumes")
    assert [claim["metadata"]["name"] for claim in server["volumeClaimTemplates"]] == ["data"]


def test_the_storage_class_for_eks_is_the_one_that_is_claimed() -> None:
    """It has the mount options of the other clouds' classes, and the user of the pods."""
    assert schema_problems([CLASS], OLDEST) == []
    assert at(render("eks-spot"), "PersistentVolumeClaim/backup", "spec.storageClassName") == CLASS["metadata"]["name"]
    for cloud in ("aks-spot", "gke-spot"):
        assert at(render(cloud), "StorageClass/distributed-backup-nfs", "mountOptions") == CLASS["mountOptions"]
    user = at(render("eks-spot"), "Job/train", "spec.template.spec.securityContext.runAsUser")
    assert CLASS["parameters"]["uid"] == CLASS["parameters"]["gid"] == str(user)


def test_the_tables_name_overlays_components_and_fields_that_exist() -> None:
    """The oldest version of Kubernetes is the one that the manifests are validated for."""
    assert set(re.findall(r"`([a-z-]+)`", " ".join(first_column("overlay")))) == set(OVERLAYS)
    assert set(re.findall(r"`([a-z-]+)`", " ".join(first_column("component")))) == COMPONENTS
    assert f"Needs Kubernetes {OLDEST} or newer" in " ".join(README.split())
    everything = yaml.safe_dump_all(render("gke-spot"))
    job = yaml.safe_dump(at(render("gke-spot"), "Job/train", ""))
    fields = [(cell, field) for cell in first_column("field") for field in re.findall(r"`([^`]+)`", cell)]
    assert fields
    for cell, field in fields:
        if cell.startswith("no "):
            assert field not in job
        else:
            assert field.split(" ")[0] in everything, field


def test_the_package_or_train_py_reads_every_variable() -> None:
    """Other variables of the manifests refer to BACKUP_ROOT."""
    named = set(re.findall(r"\b(?:DISTRIBUTED_BACKUP|TRAIN|BACKUP)_[A-Z_]+\b", README))
    assert named <= package_variables() | job_variables() | {"BACKUP_ROOT"}
