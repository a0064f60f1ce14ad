"""What a run was made with: enough to make it again, or to say why it came out differently."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
# A model depends on these libraries, and on these files of ours.
TRAINING_PACKAGES = (
    "numpy",
    "polars",
    "optuna",
    "xgboost",
    "lightgbm",
    "scikit-learn",
    "skops",
    "torch",
    "mlx",
    "keras",
)
PACKAGES = ("dagster", "mlflow", "bentoml", "onnx", "onnxruntime", *TRAINING_PACKAGES)
TRAINING_CODE = ("training.py", "search", "input_schema.py", "fields.py", "metrics.py", "newcomers.py", "trainers")
# Arguments of a training that make no other model: of the accelerator that is wished for, the one that is found counts.
WHERE_AND_HOW = ("out", "training_set", "checkpoint", "points", "accelerator")


def run_manifest(project: Path = PROJECT) -> dict[str, Any]:
    """Code, machine and libraries, as JSON scalars and flat dicts.

    `git_commit` and `git_dirty` are None where `project` is no git work tree or git is not installed.
    """
    status = _git(project, "status", "--porcelain")
    return {
        "git_commit": _git(project, "rev-parse", "HEAD"),
        "git_dirty": bool(status) if status is not None else None,
        **machine_manifest(),
        "constraints_sha256": _sha256(project / "constraints.txt"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def machine_manifest() -> dict[str, Any]:
    """The machine that asks; `memory_gb` is what it may use, `gpu` names the GPUs that it sees, None without."""
    from resources.hardware import this_machine

    machine = this_machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_gb": machine.memory_gb,
        "gpu": ", ".join(gpu.name for gpu in machine.nvidia) or None,
    }


def made_from(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the model that `training.train` makes of these arguments depends on: equal, it is the same to the byte.

    The kind of device comes to it where the training runs: who asks for one elsewhere cannot know.
    A checkpoint, or a finished trial, of an interrupted training is taken up again only if all of it is equal.
    """
    from mlops_assets.checkpoints import digest
    from mlops_assets.trainers import threads

    return {
        "training_set_sha256": _content(arguments["training_set"]),
        "arguments": digest({name: value for name, value in arguments.items() if name not in WHERE_AND_HOW}),
        "seed": arguments["search"]["seed"],
        "code": training_code(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": threads(),
        "packages": {name: _version(name) for name in TRAINING_PACKAGES},
    }


@cache
def training_code() -> str:
    """A hash of our own files that a model depends on."""
    found = hashlib.sha256()
    for name in TRAINING_CODE:
        place = PROJECT / "mlops_assets" / name
        for path in sorted(place.rglob("*.py")) or [place]:
            found.update(f"{path.relative_to(PROJECT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _content(path: str) -> str:
    """The hash of a file, here or in an object store."""
    from upath import UPath

    found = hashlib.sha256()
    with UPath(path).open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _git(project: Path, *arguments: str) -> str | None:
    git = which("git")
    if git is None:
        return None
    done = subprocess.run([git, *arguments], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
