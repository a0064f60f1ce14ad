"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MLOPS_HOME in the test environment."""
    root = tmp_path / "mlops-home"
    monkeypatch.setenv("MLOPS_HOME", str(root))
    monkeypatch.setenv("MLOPS_ENV", "test")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")  # BentoML takes only this word for yes
    return root
