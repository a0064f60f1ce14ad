"""What a run was made with: enough to make it again, or to say why it came out differently."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("dagster", "mlflow", "numpy", "polars", "xgboost", "lightgbm", "scikit-learn", "skops", "optuna", "bentoml")


def run_manifest(project: Path = PROJECT) -> dict[str, Any]:
    """Code, machine and libraries, as JSON scalars and flat dicts.

    `git_commit` and `git_dirty` are None where `project` is no git work tree or git is not installed.
    `memory_gb` is what the machine has. Training runs on CPUs: `gpu` is None.
    """
    import psutil

    status = _git(project, "status", "--porcelain")
    return {
        "git_commit": _git(project, "rev-parse", "HEAD"),
        "git_dirty": bool(status) if status is not None else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": None,
        "constraints_sha256": _sha256(project / "constraints.txt"),
        "packages": {name: _version(name) for name in PACKAGES},
    }


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
