"""`mlops artifacts` over a real platform: what is shared, what is damaged, what is collected."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from mlops_assets.cli import app
from resources.artifacts.manifest import manifest_path

if TYPE_CHECKING:
    from conftest import Platform

NAME = "flights.late_arrival version 1"


def said(*words: str, code: int = 0) -> str:
    ran = CliRunner().invoke(app, ["artifacts", *words])
    assert ran.exit_code == code, ran.output
    return str(ran.stdout)


def findings(code: int = 0) -> dict[str, str]:
    return {one["what"]: one["problem"] for one in json.loads(said("verify", "--json", code=code))}


def test_a_champion_and_its_bento_are_stored_once(platform: Platform) -> None:
    """The home was copied, and a copy shares nothing; what is trained here does: a registered file is the Bento's."""
    assert platform.run("candidate", "champion", partition="2013-07-01").ok and platform.run("bento").ok
    version = platform.promotion.mlflow.download(platform.model.registered_name, "2")
    bento = platform.promotion.bentos.path(platform.promotion.bentos.list()[-1])
    for name in ("model/model.ubj", "baseline.parquet", "manifest.json"):
        assert (version / name).samefile(bento / name) and (version / name).stat().st_nlink == 3
    (used,) = json.loads(said("--json")).values()
    assert used["linked_bytes"] >= 2 * (version / "model" / "model.ubj").stat().st_size and "saved" in said()


def test_what_is_damaged_is_named_wherever_it_is_used(platform: Platform) -> None:
    """A version with a changed file, a Bento with a lost one; what is whole is told too, and the exit code says it."""
    whole = findings()
    assert whole[NAME] == "whole" and set(whole.values()) == {"whole"}
    bundle = platform.promotion.mlflow.download(platform.model.registered_name, "1")
    (bundle / "plan.json").unlink()
    (bundle / "plan.json").write_text("{}")
    tag = platform.promotion.bentos.list()[0]
    (platform.promotion.bentos.path(tag) / "golden.json").unlink()
    damaged = findings(code=1)
    assert "plan.json was changed" in damaged[NAME] and "golden.json is missing" in damaged[f"Bento {tag}"]


def test_a_version_of_before_manifests_is_told_as_such(platform: Platform) -> None:
    """It can be used, but nobody knows whether it is what was saved."""
    bundle = platform.promotion.mlflow.download(platform.model.registered_name, "1")
    manifest_path(bundle).unlink()
    assert "holds other artifacts" in findings(code=1)[NAME]
    version = platform.promotion.mlflow.version(platform.model.registered_name, "1")
    platform.promotion.mlflow.client().delete_model_version_tag(version.name, "1", "artifacts_sha256")
    assert findings()[NAME] == "has no manifest"


def test_what_nothing_refers_to_is_collected(platform: Platform) -> None:
    """In a copied home no object has a link, once its minute is over: what runs and Bentos hold is their own copy."""
    assert "objects deleted" in said("collect")
    assert findings()[NAME] == "whole"
