"""What goes wrong in the year, and when: an outage, a duplicate, a late correction, a bad release.

They lie at fixed shares of the days replayed, so that a short replay has them all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self

from mlops_assets.declarations import ModelPipeline

if TYPE_CHECKING:
    from resources.release_record import ReleaseRecord

BAD_DEPLOYER = "a hurried deploy script"
OUTAGE_DAYS = 3


@dataclass(frozen=True)
class Incidents:
    """The days on which something goes wrong; `first` and `last` are the days replayed."""

    outage: date
    duplicate: date
    correction: date
    bad_release: date

    @classmethod
    def between(cls, first: date, last: date) -> Self:
        days = (last - first).days

        def at(share: float, earliest: date) -> date:
            return max(first + timedelta(days=round(days * share)), earliest)

        outage = at(0.1, first + timedelta(days=3))
        duplicate = at(0.18, outage + timedelta(days=OUTAGE_DAYS + 1))
        correction = at(0.25, duplicate + timedelta(days=1))
        return cls(outage, duplicate, correction, at(0.35, correction + timedelta(days=1)))

    def out(self, day: date) -> bool:
        return self.outage <= day < self.outage + timedelta(days=OUTAGE_DAYS)

    @property
    def delivered_twice(self) -> date:
        return self.duplicate - timedelta(days=2)

    @property
    def corrected(self) -> date:
        """Long over when it is corrected, and within the days that were delivered."""
        return max(self.correction - timedelta(days=30), date(2013, 1, 1))

    @property
    def back(self) -> date:
        return self.outage + timedelta(days=OUTAGE_DAYS)


def release_badly(model: ModelPipeline) -> ReleaseRecord:
    """A version past all checks as a canary: the champion, with a table of routes made from twenty rows.

    It answers its golden rows, and fails on every distance that is not among them.
    """
    from mlops_assets.promotion import limits_of
    from resources.bentos import BentoStore
    from resources.environment import resources_for
    from resources.releases import ReleaseStore

    bentos, releases, mlflow = BentoStore(), ReleaseStore(), resources_for()["mlflow"]
    with TemporaryDirectory() as work:
        bundle = Path(work, "bundle")
        shutil.copytree(bentos.path(releases.current(model.id).champion.release), bundle)
        _routes_from_a_sample(model, bundle)
        with mlflow.run(model.id, name="hotfix", tags={"by": BAD_DEPLOYER}) as run_id:
            mlflow.log_directory(run_id, bundle, "bundle")
            version = mlflow.register(model.registered_name, run_id, "bundle", {"by": BAD_DEPLOYER})
        tag = bentos.build(bundle, model.id, {"version": version, "run_id": run_id})
    return releases.start_canary(
        model.id,
        tag,
        version,
        list(model.serve.canary),
        by=BAD_DEPLOYER,
        why="a hotfix of the post-processing, past the gate",
        limits=limits_of(model.serve),
    )


def _routes_from_a_sample(model: ModelPipeline, bundle: Path) -> None:
    import polars as pl

    from mlops_assets.declarations import PostProcessing
    from mlops_assets.fields import String
    from mlops_assets.serving.plan import FeaturePlan
    from mlops_assets.serving.postprocess import Postprocess

    names = FeaturePlan.from_json(json.loads((bundle / "plan.json").read_bytes())).inputs
    golden = json.loads((bundle / "golden.json").read_bytes())["rows"]
    known = {row[names.index("distance")] for row in golden}

    def named(distance: pl.Expr) -> dict[str, pl.Expr]:
        return {"route": distance.replace_strict({miles: f"route of {miles} miles" for miles in sorted(known)})}

    post = PostProcessing("named", model.team, {"route": String("Name of the route")}, named)
    made = Postprocess.of(replace(model, postprocess=post))
    if made is None:
        raise RuntimeError(f"{model.title} has no post-processing to break. Declare one.")
    made.write(bundle, names)
