"""A run says what it was made with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.manifest import PROJECT, run_manifest


def test_the_manifest_names_code_machine_and_libraries() -> None:
    """JSON, with the lock's hash and the versions that are really imported."""
    manifest = run_manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["constraints_sha256"] == hashlib.sha256((PROJECT / "constraints.txt").read_bytes()).hexdigest()
    assert manifest["packages"]["numpy"] == np.__version__
    assert manifest["cpu_count"] >= 1 and manifest["memory_gb"] > 0 and manifest["gpu"] is None


def test_the_commit_and_its_dirt_are_told(tmp_path: Path) -> None:
    """A fresh commit is clean; an edit on top of it is dirty."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (tmp_path / "model.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    clean = run_manifest(tmp_path)
    (tmp_path / "model.py").write_text("2")
    assert len(clean["git_commit"]) == 40 and clean["git_dirty"] is False
    assert run_manifest(tmp_path)["git_dirty"] is True


def test_without_git_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a work tree, and where git is not installed, commit and dirt are None, not a guess."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    outside = run_manifest(tmp_path / "empty")
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = run_manifest()
    for manifest in (outside, missing):
        assert manifest["git_commit"] is None and manifest["git_dirty"] is None
    assert outside["constraints_sha256"] is None
