"""A registry with candidates of a declared model and their Bentos, made once and copied for each test."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_assets.catalog import gather
from mlops_assets.declarations import ModelPipeline
from mlops_assets.promotion import GATE, PASSED, REFUSED, Promotion
from resources.environment import resources_for

MODEL = "flights/late_arrival"


@dataclass(frozen=True)
class Registered:
    """The stores of a home, where `register` makes the next version."""

    home: Path
    model: ModelPipeline
    promotion: Promotion

    def register(self, gate: str = PASSED) -> str:
        """A version whose bundle is small, but what a Bento is built from; refused ones say why."""
        mlflow, number = self.promotion.mlflow, len(self.promotion.mlflow.versions(self.model.registered_name)) + 1
        bundle = self.home / "work" / f"bundle-{number}"
        (bundle / "model").mkdir(parents=True)
        (bundle / "model" / "model.ubj").write_bytes(b"{}")
        with mlflow.run(self.model.id, name=f"candidate {number}") as run_id:
            manifest = {"framework": "xgboost", "model": self.model.id, "run_id": run_id}
            (bundle / "manifest.json").write_text(json.dumps(manifest))
            (bundle / "plan.json").write_text(json.dumps({"transforms": []}))
            mlflow.log_directory(run_id, bundle, "bundle")
        tags = {GATE: gate, "cutoff": f"2013-0{number}-01", "metric_name": "roc_auc", "metric": f"0.7{number}00"}
        why = {"refused_because": "clears_floor: roc_auc 0.51, at least 0.65"} if gate == REFUSED else {}
        return mlflow.register(self.model.registered_name, run_id, "bundle", {**tags, **why})

    @property
    def alias(self) -> str | None:
        return self.promotion.mlflow.alias(self.model.registered_name, "champion")

    def tags(self, version: str) -> dict[str, str]:
        return dict(self.promotion.mlflow.version(self.model.registered_name, version).tags)

    @property
    def traffic(self) -> dict[str, int]:
        """Percent by version; nothing before the first release."""
        record = self.promotion.releases.read(self.model.id)
        return {variant.version: variant.weight for variant in record.variants} if record else {}


def _registered(home: Path) -> Registered:
    return Registered(home, gather().model(MODEL), Promotion.of(resources_for("test")))


@pytest.fixture(scope="session")
def registered_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1, 2 and 4 passed their gate, 3 did not; Bentos of the first two are built, nothing is released."""
    root = tmp_path_factory.mktemp("registered") / "home"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLOPS_HOME", str(root))
        environment.setenv("MLOPS_ENV", "test")
        registered = _registered(root)
        for gate in (PASSED, PASSED, REFUSED, PASSED):
            version = registered.register(gate)
            if version in ("1", "2"):
                registered.promotion.bento_of(registered.model, version)
    return root


@pytest.fixture
def registered(registered_home: Path, home: Path) -> Registered:
    """The same in a home of the test's own; the artifacts are read where they were made."""
    shutil.copytree(registered_home, home)
    return _registered(home)
