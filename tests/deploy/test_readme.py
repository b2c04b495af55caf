"""deploy/README.md: its commands and files exist, its overlays build, and its tables name what exists."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import yaml

from tests.deploy.contract import problems
from tests.deploy.facts import DEPLOY, ROOT, is_command, job_variables, package_variables
from tests.deploy.renderings import COMPONENTS, OVERLAYS, at, kustomized, parsed, render
from tests.deploy.schemas import NEWEST, OLDEST, schema_problems

README = (DEPLOY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
MINE, PRIVATE_ADDRESS = (yaml.safe_load(block) for block in blocks("yaml"))
# Those that a user makes.
MADE = ("deploy/overlays/mine", "deploy/server/password.env")


def first_column(heading: str) -> list[str]:
    """Return the first column of the table that begins with `heading`."""
    table = README.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]


def test_every_command_names_files_and_commands_that_exist() -> None:
    """Paths below deploy/ and commands of the CLI are checked, arguments of kubectl and docker are not."""
    for line in COMMANDS:
        assert line.split(maxsplit=1)[0] in {"docker", "echo", "for", "kind", "kubectl", "until", "uv"}
        for word in line.split():
            path = word.strip("'\"").split("=")[0]
            if path.startswith("deploy/") and path not in MADE:
                assert (ROOT / path).exists(), path
        for command in re.findall(r"distributed-backup ([a-z][^']*)", line):
            assert is_command(command.split()), command


def test_the_first_command_starts_one_worker() -> None:
    assert COMMANDS[0] == "kubectl apply -k deploy/overlays/one-worker"


def test_the_overlay_for_users_builds_and_keeps_the_contract(tmp_path: Path) -> None:
    """It has their image and values, and with the patch also their private address."""
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    mine = tmp_path / "deploy" / "overlays" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(json.dumps(MINE))
    manifests = parsed(kustomized(mine))
    assert problems(manifests) == []
    assert [schema_problems(manifests, version) for version in (OLDEST, NEWEST)] == [[], []]
    worker = at(manifests, "Job/train", "spec.template.spec.containers.0")
    assert worker["image"] == "registry.example.com/team/distributed-backup-train:0.3.0"
    assert at(manifests, "ConfigMap/train", "data")["TRAIN_MODEL"] == "openai/gpt-4o-mini"
    (mine / "kustomization.yaml").write_text(json.dumps(MINE | PRIVATE_ADDRESS))
    patched = parsed(kustomized(mine))
    assert schema_problems(patched, OLDEST) == []
    internet, private = at(patched, "NetworkPolicy/train-to-internet", "spec.egress")
    assert [internet] == at(manifests, "NetworkPolicy/train-to-internet", "spec.egress")
    assert private["to"] == [{"ipBlock": {"cidr": "10.20.30.40/32"}}]


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
