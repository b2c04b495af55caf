"""Build deploy/Dockerfile and run one worker in the image, with Docker or buildah.

Where neither works, or the base images can't be had, the test is skipped. The summary at the end of the run says why.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.deploy.facts import DEPLOY, PINNED, ROOT, instructions
from tests.support.servers import wait_for

IMAGE = f"localhost/distributed-backup-train:test-{os.getpid()}"
NAME = f"distributed-backup-train-{os.getpid()}"
LINES = instructions((DEPLOY / "Dockerfile").read_text())
[COMMAND] = [text.strip("[]").replace('"', "").split(", ") for name, text in LINES if name == "CMD"]
# Those that are no stage of the Dockerfile.
BASES = {text.split()[0] for name, text in LINES if name == "FROM" and PINNED.fullmatch(text.split()[0])}
# Where Debian has the certificates of a machine's private CAs.
PRIVATE_CAS = Path("/usr/local/share/ca-certificates")
# Nothing is written before a notice.
SETTINGS = ["HOME=/tmp", "BACKUP_DIR=/tmp/run", "DISTRIBUTED_BACKUP_SAVE_FREQ=false", "TRAIN_LATENCY=1"]
ENVIRONMENT = [word for setting in SETTINGS for word in ("--env", setting)]
# Seconds: the build installs 200 packages and compiles them.
PATIENCE = 1500.0


class Tool(Protocol):
    """A program that builds images and runs them."""

    works: str
    """A shell command that fails where the program can't be used."""

    build: tuple[str, ...]
    """The command before the options of a build that both programs have."""

    def fetch(self, image: str) -> str:
        """Return the shell command that fetches an image, unless it is on the machine."""
        ...

    def start(self) -> list[str]:
        """Return the command that runs a worker in the image, in the foreground."""
        ...

    def terminate(self, log: str) -> None:
        """Send SIGTERM to the worker with this log."""
        ...

    def remove(self) -> None:
        """Remove the image and its container."""
        ...


class Docker(Tool):
    # The Dockerfile needs BuildKit, which new clients have in a component of its own.
    works: str = "DOCKER_BUILDKIT=1 docker build --help > /dev/null && docker version > /dev/null"
    build: tuple[str, ...] = ("env", "DOCKER_BUILDKIT=1", "docker", "build")

    def fetch(self, image: str) -> str:
        return f"docker image inspect {image} > /dev/null 2>&1 || docker pull --quiet {image}"

    def start(self) -> list[str]:
        # As in base/job.yaml.
        hardened = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        return ["docker", "run", "--rm", f"--name={NAME}", *hardened, *ENVIRONMENT, IMAGE, *COMMAND]

    def terminate(self, log: str) -> None:
        run("docker", "kill", "--signal=TERM", NAME)

    def remove(self) -> None:
        run("docker", "rmi", "--force", IMAGE)


class Buildah(Tool):
    works: str = "buildah info > /dev/null"
    # This isolation needs no more rights than root's. Old versions do not find the ignore file.
    build: tuple[str, ...] = (
        "buildah",
        "bud",
        "--layers",
        "--force-rm",
        "--pull=false",
        "--isolation=chroot",
        f"--ignorefile={DEPLOY}/Dockerfile.dockerignore",
    )

    def fetch(self, image: str) -> str:
        return f"buildah pull --quiet --policy=missing {image}"

    def start(self) -> list[str]:
        run("buildah", "from", "--pull-never", f"--name={NAME}", IMAGE)
        return ["buildah", "run", "--isolation=chroot", *ENVIRONMENT, NAME, "--", *COMMAND]

    def terminate(self, log: str) -> None:
        # `buildah run` kills its process at a SIGTERM. The process has no PID namespace, and its name has its id.
        [process] = set(re.findall(r" worker=\S+-(\d+)-[0-9a-f]+ ", log))
        os.kill(int(process), signal.SIGTERM)

    def remove(self) -> None:
        run("buildah", "rm", NAME)
        run("buildah", "rmi", "--force", IMAGE)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command[:4]}\n{done.stdout}\n{done.stderr}"


def problem(tool: Tool) -> str | None:
    """Return why a tool can't be used here."""
    for command in (tool.works, *map(tool.fetch, sorted(BASES))):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode != 0:
            return f"{type(tool).__name__}: {' '.join(done.stderr.split())}"
    return None


@pytest.fixture
def tool() -> Iterator[Tool]:
    problems = []
    tools: tuple[Tool, ...] = (Docker(), Buildah())
    for found in tools:
        reason = problem(found)
        if reason is None:
            break
        problems.append(reason)
    else:
        pytest.skip(f"the image was not built and no worker was run in it: {'; '.join(problems)}")
    authorities = "".join(path.read_text() for path in sorted(PRIVATE_CAS.glob("*.crt")))
    run(*found.build, f"--file={DEPLOY}/Dockerfile", f"--tag={IMAGE}", f"--build-arg=CA={authorities}", str(ROOT))
    yield found
    found.remove()


@pytest.mark.timeout(2 * PATIENCE)
def test_a_worker_in_the_image_saves_at_a_sigterm_and_exits_with_143(tool: Tool, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(tool.start(), stdout=output, stderr=output)
    try:
        wait_for(lambda: " restored " in log.read_text() or process.poll() is not None, "the worker trains", PATIENCE)
        assert process.poll() is None, log.read_text()
        assert " committed " not in log.read_text()
        tool.terminate(log.read_text())
        assert process.wait(PATIENCE) == 143, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert re.search(r" preempted worker=\S+ saved=true checkpoint=\S+\.ckpt", log.read_text()), log.read_text()
