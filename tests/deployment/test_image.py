"""The image holds what the processes need, and nothing that must not leave this machine."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resources.environment import PROJECT, QUIET
from tests.deployment.applied import Platform

FILE = PROJECT / "deployment" / "Dockerfile"
LINES = re.sub(r"\\\n", " ", FILE.read_text()).splitlines()


def instructions(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in LINES if line.startswith(f"{word} ")]


def copied() -> list[tuple[list[str], str]]:
    """What is copied of the project, and where it goes."""
    words = [line.split() for line in instructions("COPY") if not line.startswith("--from")]
    return [(sources, target) for *sources, target in words]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory /opt/mlops as the Dockerfile makes it."""
    root = tmp_path_factory.mktemp("image") / "opt"
    for sources, target in copied():
        for source in sources:
            place = root / target / Path(source).name if target.endswith(("/", ".")) else root / target
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / source, place)
    return root


def test_nothing_else_is_sent_to_the_builder():
    """What the ignore file lets through is what is copied: no state, no secret, no history."""
    rules = FILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert sent == {source for sources, _ in copied() for source in sources}
    assert not any(fnmatch.fnmatch(name, rule) for rule in sent for name in (".env", "secret.env", ".git", ".mlops"))


def test_the_process_is_nobody_in_particular():
    """A number, for Kubernetes cannot tell from a name that it is not root's; the one of the manifests."""
    assert instructions("USER") == ["10001:10001"]
    assert LINES.index("USER 10001:10001") > max(at for at, line in enumerate(LINES) if line.startswith("RUN "))


def test_what_it_is_built_from_is_pinned():
    for base in instructions("FROM"):
        assert re.match(r"python:3\.\d+\.\d+-", base)
    assert re.search(r"ARG UV=\d+\.\d+\.\d+$", FILE.read_text(), re.MULTILINE)
    install = next(line for line in instructions("RUN") if "-r pyproject.toml" in line)
    assert "-c constraints.txt" in install


def test_the_extras_are_ours_and_enough(whole: Platform):
    """Those that dagster.yaml, the launcher and the addresses of a deployed platform need."""
    known = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (given,) = [line.partition("=")[2].split(",") for line in instructions("ARG") if line.startswith("EXTRAS")]
    assert {"kubernetes", "aws", "postgres", "redis"} <= set(given) <= set(known)


def test_no_library_reports_home():
    """Also where the image is started by hand."""
    (said,) = [line for line in instructions("ENV") if "DO_NOT_TRACK" in line]
    assert QUIET.items() <= dict(word.split("=", 1) for word in said.split()).items()


def test_what_is_copied_is_enough(image: Path, tmp_path: Path):
    """The definitions load and the command answers from those files alone, of which none is written to."""
    loaded = "from mlops_assets.definitions import defs; print(len(defs.resolve_all_asset_specs()))"
    for argv in ([sys.executable, "-c", loaded], [sys.executable, "-m", "mlops_assets.cli", "--help"]):
        done = subprocess.run(
            argv,
            cwd=image,
            env={**os.environ, "PYTHONPATH": str(image), "MLOPS_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert not list(image.rglob("__pycache__"))
