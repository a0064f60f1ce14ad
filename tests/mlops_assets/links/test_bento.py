"""A Bento is built once, whole, and only released when it answers as its model did."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlops_assets.links.bento import golden_parity
from resources import bentos
from resources.artifacts.manifest import Manifest
from resources.artifacts.runs import TAG

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF = "2013-07-01"


def test_materializing_again_builds_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same champion is the same tag, and not a file of it is touched."""

    def never(*_: object) -> None:
        raise AssertionError("built again")

    before = platform.published
    monkeypatch.setattr(bentos, "_build", never)
    first, second = platform.run("bento"), platform.run("bento")
    assert first.ok and second.ok and first.facts["bento"]["tag"] == second.facts["bento"]["tag"]
    assert platform.published == before


def test_a_build_that_breaks_off_leaves_the_release_alone(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new champion waits without traffic, no half Bento is found, and running on from there completes."""
    before = platform.published
    with monkeypatch.context() as patched:
        patched.setattr(bentos, "BENTOML_ALONE", "raise SystemExit('no space left on device')")
        ran = platform.train(CUTOFF)
    assert not ran.ok and "no space left on device" in ran.trouble and "endpoint" not in ran.facts
    broken = platform.published
    assert {name: broken[name] for name in ("release", "changes", "bentos")} == {
        name: before[name] for name in ("release", "changes", "bentos")
    }
    assert broken["alias"] == "2" and not list((platform.home / "bentoml").glob("build-*"))
    again = platform.run("bento", "endpoint")
    assert again.ok and [v.version for v in platform.published["release"].variants] == ["1", "2"]


def test_a_damaged_version_becomes_no_bento(platform: Platform) -> None:
    """A bit that flipped in the registry is named, before anything is built of it."""
    before = platform.published
    assert platform.run("candidate", "champion", partition=CUTOFF).ok
    model = platform.promotion.mlflow.download(platform.model.registered_name, "2") / "model" / "model.ubj"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    ran = platform.run("bento", "endpoint")
    assert not ran.ok and "model/model.ubj was changed" in ran.trouble
    assert platform.published["bentos"] == before["bentos"] and platform.published["release"] == before["release"]


def _register_otherwise(platform: Platform, copy: Path) -> None:
    """Version 2 as if it had been trained with golden rows that say the contrary."""
    mlflow, name = platform.promotion.mlflow, platform.model.registered_name
    shutil.copytree(mlflow.download(name, "2"), copy)
    told = json.loads((copy / "golden.json").read_text())
    (copy / "golden.json").unlink()
    (copy / "golden.json").write_text(json.dumps({**told, "predictions": [1 - value for value in told["predictions"]]}))
    mlflow.log_directory(mlflow.version(name, "2").run_id, copy, "bundle")
    mlflow.tag_version(name, "2", {TAG: Manifest.of(copy).digest})


def test_a_bento_that_answers_otherwise_is_not_released(platform: Platform, tmp_path: Path) -> None:
    """Its golden rows say one thing, its model another: the blocking check fails and the endpoint is not run."""
    before = platform.published["release"]
    assert platform.run("candidate", "champion", partition=CUTOFF).ok
    _register_otherwise(platform, tmp_path / "bundle")
    ran = platform.run("bento", "endpoint")
    assert not ran.ok and ran.failed == {"golden_parity"} and "endpoint" not in ran.facts
    assert "answers its golden rows with a difference of" in ran.checks["golden_parity"].description
    assert platform.published["release"] == before


def test_a_bento_without_its_model_file_fails_by_name(platform: Platform) -> None:
    """A file that went missing from the store is named by the check, not by a traceback of a library."""
    tag = platform.published["release"].champion.release
    (platform.promotion.bentos.path(tag) / "model" / "model.ubj").unlink()
    claim = golden_parity(platform.promotion.bentos, tag)
    assert not claim.passed and "model.ubj" in claim.reason
