"""deploy/Dockerfile builds the image that the manifests expect: pinned, locked, and without root."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml

from tests.deploy.facts import DEPLOY, PINNED, ROOT, instructions

DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
JOB = yaml.safe_load((DEPLOY / "base" / "job.yaml").read_text())["spec"]["template"]["spec"]

# `uv lock` makes it before the build. The repository has none, because it names a registry.
MADE = {"uv.lock"}


def problems(dockerfile: str) -> list[str]:
    """Return every mistake in a Dockerfile, a line each."""
    return [*_of_the_build(instructions(dockerfile)), *_of_the_last_stage(instructions(dockerfile))]


def _stages(lines: list[tuple[str, str]]) -> dict[str, str]:
    """Return what each stage with a name is built from."""
    return {text.split()[2]: text.split()[0] for name, text in lines if name == "FROM" and " AS " in text}


def _of_the_build(lines: list[tuple[str, str]]) -> Iterator[str]:
    stages = _stages(lines)
    for name, text in lines:
        if name == "FROM" and text.split()[0] not in stages and not PINNED.fullmatch(text.split()[0]):
            yield f"{text.split()[0]} is not pinned"
        if name == "RUN" and "uv sync" in text and not {"--locked", "--no-dev"} <= set(text.split()):
            yield "uv sync must be --locked and --no-dev"
        if name == "ENV" and "UV_COMPILE_BYTECODE=1" in text and "PYC_INVALIDATION_MODE=UNCHECKED_HASH" not in text:
            yield "bytecode must be unchecked: builders change the times of files"
        if name == "COPY" and text.startswith("--from="):
            if text.split()[0].removeprefix("--from=") not in stages:
                yield f"there is no stage {text.split()[0]}"
        elif name == "COPY":
            yield from _sources([word for word in text.split()[:-1] if not word.startswith("--")])


def _sources(paths: list[str]) -> Iterator[str]:
    """Check that the ignore file lets each source through. It names every file that it lets through."""
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for path in paths:
        if path not in MADE and not (ROOT / path).exists():
            yield f"there is no {path}"
        elif path not in sent:
            yield f"{path} is not sent to the builder"


def _of_the_last_stage(lines: list[tuple[str, str]]) -> Iterator[str]:
    start = max(number for number, (name, _) in enumerate(lines) if name == "FROM")
    last = dict(lines[start:])
    version = re.search(r"python:(\d+\.\d+)", _stages(lines).get(last["FROM"], last["FROM"]))
    if version is None or f">={version[1]}" != PROJECT["project"]["requires-python"]:
        yield f"the package wants Python {PROJECT['project']['requires-python']}"
    context, [container] = JOB["securityContext"], JOB["containers"]
    if last.get("USER") != f"{context['runAsUser']}:{context['runAsGroup']}":
        yield f"USER must be {context['runAsUser']}:{context['runAsGroup']}, as in base/job.yaml"
    if last.get("WORKDIR") != container["workingDir"]:
        yield f"WORKDIR must be {container['workingDir']}, as in base/job.yaml"
    if last.get("CMD") != json.dumps(container["command"]):
        yield f"CMD must be {json.dumps(container['command'])}: the exec form, as in base/job.yaml"
    for name, text in lines[start:]:
        if name == "COPY" and not re.match(r"--(from=|chmod=0644 )", text):
            yield f"{text.split()[0]} keeps its mode from the builder's disk"
    if not any(name == "COPY" and text.split()[-2:] == ["deploy/train.py", "./"] for name, text in lines[start:]):
        yield "deploy/train.py is not in the image"
    if "RUN" in last:
        yield "the last stage must run nothing: the image keeps every file that it leaves"
    environment = dict(word.partition("=")[::2] for word in shlex.split(last.get("ENV", "")))
    yield from _of_the_programs(lines, lines[start:], environment.get("PATH", ""))
    for name, value in {"PYTHONUNBUFFERED": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}.items():
        if environment.get(name) != value:
            yield f"{name} must be {value}"


def _of_the_programs(lines: list[tuple[str, str]], last: list[tuple[str, str]], path: str) -> Iterator[str]:
    """Check that the virtual environment keeps its path, which its programs contain, and is first in PATH."""
    workdir = PurePosixPath(JOB["containers"][0]["workingDir"])
    copies = [text.split() for name, text in last if name == "COPY"]
    [(source, target)] = [(words[-2], workdir / words[-1]) for words in copies if words[0].startswith("--from=")]
    made = PurePosixPath(next(text for name, text in lines if name == "WORKDIR")) / ".venv"
    if not made == PurePosixPath(source) == target:
        yield f"{made} is copied from {source} to {target}"
    if path.split(":") != [f"{made}/bin", "$PATH"]:
        yield f"PATH must be {made}/bin:$PATH"


def test_the_dockerfile_has_no_mistake() -> None:
    """The checks above find none."""
    assert problems(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("uv:0.13.9", "uv:latest", "ghcr.io/astral-sh/uv:latest is not pinned"),
        ("python:3.12.12-slim-bookworm", "python:3.11.9-slim", "the package wants Python >=3.12"),
        ("--locked --no-dev --no-install-project", "--no-dev", "uv sync must be --locked and --no-dev"),
        ("--locked --no-dev --no-editable", "--locked", "uv sync must be --locked and --no-dev"),
        (" PYC_INVALIDATION_MODE=UNCHECKED_HASH", "", "bytecode must be unchecked: builders change the times of files"),
        ("--from=build", "--from=builder", "there is no stage --from=builder"),
        ("README.md LICENSE", "README.md LICENCE", "there is no LICENCE"),
        ("COPY --chmod=0644 deploy/train.py ./\n", "", "deploy/train.py is not in the image"),
        ("--chmod=0644 ", "", "deploy/train.py keeps its mode from the builder's disk"),
        ("COPY README.md", "COPY tests", "tests is not sent to the builder"),
        ("USER 10001:10001\n", "", "USER must be 10001:10001, as in base/job.yaml"),
        ("USER 10001:10001\n", "USER nobody\n", "USER must be 10001:10001, as in base/job.yaml"),
        (
            "WORKDIR /app\nCOPY --from=build",
            "WORKDIR /srv\nCOPY --from=build",
            "WORKDIR must be /app, as in base/job.yaml",
        ),
        (
            'CMD ["python", "train.py"]',
            "CMD python train.py",
            'CMD must be ["python", "train.py"]: the exec form, as in base/job.yaml',
        ),
        (
            "USER 10001",
            "RUN true\nUSER 10001",
            "the last stage must run nothing: the image keeps every file that it leaves",
        ),
        ("PATH=/app/.venv/bin:$PATH ", "", "PATH must be /app/.venv/bin:$PATH"),
        ("PATH=/app/.venv/bin:$PATH", "PATH=/venv/bin:$PATH", "PATH must be /app/.venv/bin:$PATH"),
        ("PATH=/app/.venv/bin:$PATH", "PATH=/app/.venv/bin", "PATH must be /app/.venv/bin:$PATH"),
        ("/app/.venv .venv", "/app/.venv venv", "/app/.venv is copied from /app/.venv to /app/venv"),
        ("/app/.venv .venv", "/srv/.venv .venv", "/app/.venv is copied from /srv/.venv to /app/.venv"),
        ("PYTHONUNBUFFERED=1 ", "", "PYTHONUNBUFFERED must be 1"),
        ("COST_MAP=True", "COST_MAP=False", "LITELLM_LOCAL_MODEL_COST_MAP must be True"),
    ],
)
def test_a_planted_mistake_is_the_only_one_reported(old: str, new: str, wanted: str) -> None:
    assert old in DOCKERFILE
    start, _, end = DOCKERFILE.rpartition(old)
    assert problems(start + new + end) == [wanted]


def test_the_extras_in_the_dockerfile_and_the_readme_exist() -> None:
    """The project defines them."""
    named: list[Any] = re.findall(r"--extra ([a-z0-9-]+)", DOCKERFILE + (DEPLOY / "README.md").read_text())
    assert named
    assert set(named) <= set(PROJECT["project"]["optional-dependencies"])
