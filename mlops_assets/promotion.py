"""Promotion and rollback: the registry's alias and the endpoint's traffic, moved together.

The assets, the sensors and the command line all go through here. A promotion builds the Bento, moves the
traffic, then the alias; a new champion begins with the alias and reaches the traffic by its endpoint asset.
Each takes its turn at a model, so that traffic and alias agree when it is over. Each step is idempotent;
a process killed between two of them is completed by asking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import ModelPipeline
from resources.champions import ALIAS

if TYPE_CHECKING:
    from resources.bentos import BentoStore
    from resources.champions import ChampionStore
    from resources.mlflow import MlflowResource
    from resources.releases import ReleaseRecord, ReleaseStore

GATE = "gate"
PASSED, REFUSED = "passed", "refused"
BENTO = "bento"
ROLLED_BACK = "rolled_back"
PARITY = "feature_parity"


class NotPromotableError(RuntimeError):
    """A version was to be promoted that may not be."""

    @classmethod
    def of(cls, model: str, asked: str, why: str, promotable: list[str]) -> Self:
        return cls(
            f"{model!r} cannot promote {asked}: {why} (promotable: {', '.join(promotable) or 'none'}). "
            f"Materialize '{model}/candidate' for a new one."
        )


@dataclass(frozen=True)
class Promotion:
    """The stores that a promotion touches."""

    mlflow: MlflowResource
    bentos: BentoStore
    releases: ReleaseStore
    champions: ChampionStore

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Self:
        return cls(resources["mlflow"], resources["bentos"], resources["releases"], resources["champions"])

    @classmethod
    def here(cls) -> Self:
        """The stores of this environment."""
        from resources.environment import resources_for

        return cls.of(resources_for())

    def next_champion(self, model: ModelPipeline) -> Any | None:
        """The newest version that passed its gate and was not rolled back; None when there is none."""
        fit = [version for version in self.mlflow.versions(model.registered_name) if _promotable(version.tags)]
        return max(fit, key=lambda version: int(version.version), default=None)

    def crown(self, model: ModelPipeline, version: str, *, by: str, why: str) -> Any | None:
        """Move the alias `champion`; None when it is there already."""
        return self.champions.move(self.mlflow, model.id, model.registered_name, version, by=by, why=why)

    def bento_of(self, model: ModelPipeline, version: str) -> str:
        """The tag of the version's Bento, built from the registry when it is not there yet."""
        bundle = self.mlflow.download(model.registered_name, version)
        run_id = self.mlflow.version(model.registered_name, version).run_id
        tag = self.bentos.build(bundle, model.id, {"version": version, "run_id": run_id})
        self.mlflow.tag_version(model.registered_name, version, {BENTO: tag})
        return tag

    def crown_newest(self, model: ModelPipeline, *, by: str) -> tuple[Any, Any | None] | None:
        """Make the newest promotable version the champion; it and the move, None where nothing is promotable."""
        with self.champions.turn(model.id):
            newest = self.next_champion(model)
            if newest is None:
                return None
            return newest, self.crown(
                model, newest.version, by=by, why=f"passed its gate as of {newest.tags.get('cutoff')}"
            )

    def promote(self, model: ModelPipeline, version: str | None, *, by: str, why: str) -> ReleaseRecord:
        """All traffic and the alias to `version`, or to the running canary, or to the newest that passed its gate.

        Raises NotPromotableError for a version that did not pass its gate.
        """
        now = self.releases.read(model.id)
        if version is None and now is not None and now.challenger is not None:
            version = now.challenger.version
        chosen = self._chosen(model, version)
        tag = self.bento_of(model, chosen)
        with self.champions.turn(model.id):
            self.releases.start_canary(model.id, tag, chosen, [100], by=by, why=why)
            record = self.releases.promote(model.id, chosen, by=by, why=why)
            self._follow(model, record, by=by, why=why)
        return record

    def rollback(self, model: ModelPipeline, *, by: str, why: str) -> ReleaseRecord:
        """All traffic and the alias back to the release before; the version left is not promoted again by itself."""
        with self.champions.turn(model.id):
            now = self.releases.read(model.id)
            half_done = now is not None and self._half_rolled_back(model, now)
            record = now if now and half_done else self.releases.rollback(model.id, by=by, why=why)
            self._follow(model, record, by=by, why=why)
        return record

    def _half_rolled_back(self, model: ModelPipeline, now: ReleaseRecord) -> bool:
        """A rollback moved the traffic, and was killed before the alias; rolling back once more would undo it."""
        moves = self.champions.history(model.id)
        alias_moved_since = bool(moves) and moves[-1].at >= now.at
        behind = self.mlflow.alias(model.registered_name, ALIAS) != now.champion.version
        return now.change.action == "rollback" and behind and not alias_moved_since

    def _follow(self, model: ModelPipeline, record: ReleaseRecord, *, by: str, why: str) -> None:
        """Bring the registry to where the traffic is.

        Newer versions that had traffic before were left for a reason, and are marked not to come back by themselves.
        """
        chosen = record.champion.version
        had_traffic = {variant.version for change in self.releases.history(model.id) for variant in change.after}
        for version in sorted(had_traffic, key=int):
            if int(version) >= int(chosen):
                left = "false" if version == chosen else "true"
                self.mlflow.tag_version(model.registered_name, version, {ROLLED_BACK: left})
        self.crown(model, chosen, by=by, why=why)

    def _chosen(self, model: ModelPipeline, version: str | None) -> str:
        versions = {item.version: item for item in self.mlflow.versions(model.registered_name)}
        fit = [name for name, item in versions.items() if item.tags.get(GATE) == PASSED]
        if version is None:
            newest = self.next_champion(model)
            if newest is None:
                raise NotPromotableError.of(model.id, "anything", "no version passed its gate", fit)
            version = str(newest.version)
        if version not in versions:
            raise NotPromotableError.of(model.id, f"version {version}", "it does not exist", fit)
        if version not in fit:
            raise NotPromotableError.of(model.id, f"version {version}", "it did not pass its gate", fit)
        if versions[version].tags.get(PARITY) == REFUSED:
            why = "its Bento reads features online that differ from those offline (check feature_parity)"
            raise NotPromotableError.of(model.id, f"version {version}", why, fit)
        return version


def _promotable(tags: Mapping[str, str]) -> bool:
    return tags.get(GATE) == PASSED and tags.get(ROLLED_BACK) != "true"
