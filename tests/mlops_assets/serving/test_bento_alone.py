"""A Bento with no platform around it: nothing but its own files and the packages that it names.

No container engine is needed: a stand-in for `docker` keeps what it is asked to build, and the test does the steps of
that Dockerfile itself: a fresh environment of the pinned requirements, the context as the working directory, the
entrypoint as the command.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from mlops_assets.fields import Bool, Float64
from mlops_assets.serving.postprocess import Output, Postprocess
from resources.bentos import BentoStore

MODEL = "flights/late_arrival"
# What `docker` is asked to do: `docker build ... <context>`; the context is gone when it returns.
ENGINE = f"""#!{sys.executable}
import json, os, shutil, sys
from pathlib import Path
kept = Path(os.environ["KEPT"])
print("27.0.0")  # what it is asked for first
if "build" in sys.argv:
    (kept / "argv.json").write_text(json.dumps(sys.argv[1:]))
    shutil.copytree(sys.argv[-1], kept / "context")
"""


@dataclass(frozen=True)
class Built:
    """What an engine was given for a Bento: its arguments, and the context with the Dockerfile in it."""

    tag: str
    argv: list[str]
    context: Path
    environment: dict[str, str]

    @property
    def dockerfile(self) -> str:
        return Path(self.context, "env", "docker", "Dockerfile").read_text()

    @property
    def requirements(self) -> list[str]:
        return Path(self.context, "env", "python", "requirements.txt").read_text().split()


def with_postprocess(bundle: Path) -> Path:
    prediction = pl.col("prediction")
    read, late = {"prediction": Float64("Probability")}, Bool("Worth a warning")
    post = Postprocess({"prediction": "Float64"}, {"likely_late": Output.of(prediction >= 0.5, late, read)})
    post.write(bundle, json.loads((bundle / "plan.json").read_text())["inputs"])
    return bundle


@pytest.fixture(scope="module")
def built(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """`bentoml containerize <tag>`, with nothing of the platform in the environment, run once."""
    root = tmp_path_factory.mktemp("alone")
    tag = BentoStore(root / "bentoml").build(with_postprocess(make_bundle()), MODEL, {"version": "3", "run_id": "r"})
    engine = root / "bin" / "docker"
    engine.parent.mkdir()
    engine.write_text(ENGINE)
    engine.chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLOPS_", "DAGSTER_", "FEAST_"))},
        "BENTOML_HOME": str(root / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "KEPT": str(root),
        "PATH": f"{engine.parent}:/usr/local/bin:/usr/bin:/bin",
    }
    command = [sys.executable, "-m", "bentoml", "containerize", tag, "--backend", "docker", "-t", "late:3"]
    ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return Built(tag, json.loads((root / "argv.json").read_text()), root / "context", environment)


def test_the_image_is_built_of_the_bento_alone(built: Built) -> None:
    """The engine is given a copy of the Bento as context, under the asked name, and no secret, mount or network."""
    assert "late:3" in built.argv and built.argv[-1] != str(built.context)
    assert not any(
        word in " ".join(built.argv) for word in ("secret", "ssh", "--network", "--build-context", "--add-host")
    )
    held = {path.relative_to(built.context).as_posix() for path in built.context.rglob("*") if path.is_file()}
    assert {"src/bundle/plan.json", "src/bundle/schema.json", "src/bundle/golden.json"} <= held
    assert {"src/bundle/baseline.parquet", "src/bundle/postprocess.json", "src/bundle/model/model.ubj"} <= held
    assert not [path for path in built.context.rglob("*") if path.is_symlink()]
    assert not [name for name in held if re.search(r"\.(env|pem|key|pkl|pickle|db)$|(^|/)\.", name)]


def test_the_dockerfile_pins_what_it_builds_on(built: Built) -> None:
    """This Python's own image, every package at one version, nothing copied from outside, no secret, no root."""
    lines = built.dockerfile.splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == [
        f"FROM python:{platform.python_version()}-slim AS base-container"
    ]
    copied = [line.split()[-2:] for line in lines if line.startswith(("COPY", "ADD"))]
    assert copied and all(source.startswith(".") and ".." not in source for source, _ in copied)
    assert "USER bentoml" in lines and not [
        line for line in lines[lines.index("USER bentoml") :] if "USER root" in line
    ]
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", package) for package in built.requirements)
    assert not re.search(r"(?i)password|secret|token|api_key|PIP_INDEX|find-links", built.dockerfile)
    assert not re.search(r"(?i)AWS_|MLOPS_", built.dockerfile)


def test_a_bento_needs_neither_orchestrator_nor_registry(built: Built) -> None:
    """What a process that answers must not have to carry."""
    names = {package.partition("==")[0] for package in built.requirements}
    assert "bentoml" in names and not names & {"dagster", "feast", "mlflow", "evidently", "optuna", "pandas"}


@pytest.fixture(scope="module")
def alone(built: Built, started: Callable[..., Any]) -> Iterator[httpx.Client]:
    """The entrypoint of the image in a fresh environment of its requirements, where the project cannot be imported."""
    context = built.context
    uv = [str(Path(sys.executable).with_name("uv"))]
    install = {**built.environment, "UV_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", "")}
    for command in (
        ["venv", "-q", "--python", sys.executable, str(context / ".venv")],
        ["pip", "install", "-q", "--python", str(context / ".venv"), "-r", "env/python/requirements.txt"],
    ):
        subprocess.run([*uv, *command], cwd=context, env=install, check=True)
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(context),
        "BENTOML_HOME": str(context / "home"),
        "BENTO_PATH": str(context),
        "BENTOML_DO_NOT_TRACK": "true",
    }

    def command(port: int) -> tuple[list[str], dict[str, str]]:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        return ["bash", "env/docker/entrypoint.sh", *where], environment

    try:
        with started(command, context / "server.log", cwd=context) as client:
            yield client
    finally:
        shutil.rmtree(context / ".venv")


@pytest.mark.slow
def test_it_runs_on_its_own_packages_alone(alone: httpx.Client, built: Built) -> None:
    """The fresh environment has neither the platform's libraries nor its code; the Bento brings what it needs."""
    packages = next((built.context / ".venv" / "lib").iterdir()) / "site-packages"
    installed = {path.name.partition("-")[0] for path in packages.glob("*.dist-info")}
    assert "bentoml" in installed and not installed & {"dagster", "mlflow", "feast", "mlops_assets", "mlops-assets"}
    python = str(built.context / ".venv" / "bin" / "python")
    assert subprocess.run([python, "-c", "import mlops_assets"], cwd="/", capture_output=True, check=False).returncode
    assert f"/{MODEL}/predict" in alone.get("/openapi.json").json()["paths"]


@pytest.mark.slow
def test_its_golden_requests_are_answered_as_in_training(alone: httpx.Client, built: Built) -> None:
    """The model's answers and what post-processing says of them, from the release that the tag names."""
    bundle = built.context / "src" / "bundle"
    plan, golden = (json.loads((bundle / f"{name}.json").read_text()) for name in ("plan", "golden"))
    rows = [{"features": dict(zip(plan["inputs"], row, strict=True))} for row in golden["rows"]]
    response = alone.post(f"/{MODEL}/predict", json={"rows": rows})
    assert response.status_code == 200, response.text
    answers = response.json()["predictions"]
    assert [answer["prediction"] for answer in answers] == pytest.approx(golden["predictions"], abs=1e-6)
    assert [answer["likely_late"] for answer in answers] == [said >= 0.5 for said in golden["predictions"]]
    assert {(answer["release"], answer["version"]) for answer in answers} == {(built.tag, "3")}


@pytest.mark.slow
def test_the_examples_of_its_page_answer_when_tried(alone: httpx.Client) -> None:
    """Every JSON example of the OpenAPI document, posted as it stands."""
    paths: dict[str, Any] = alone.get("/openapi.json").json()["paths"]
    tried = 0
    for path, operations in paths.items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
        named = [item["value"] for item in content.get("examples", {}).values()]
        for example in [*named, *([content["example"]] if "example" in content else [])]:
            answered = alone.post(path, json=example)
            assert answered.status_code == 200, f"{path}: {answered.text}"
            tried += 1
    assert tried and alone.get("/docs").status_code == 200


@pytest.mark.slow
def test_it_leaves_nothing_behind_and_asks_for_no_platform(alone: httpx.Client, built: Built) -> None:
    """By keys it answers with marked fallbacks; it writes no log, no state, and no file into itself."""
    row = {"origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False}
    (answer,) = alone.post(f"/{MODEL}/predict", json={"rows": [row]}).json()["predictions"]
    assert [fallback["reason"] for fallback in answer["fallbacks"]] == ["no row", "no row"]
    assert not list(built.context.rglob(".mlops")) and not list(built.context.rglob("*.jsonl"))
