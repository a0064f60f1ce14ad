"""Promotion and rollback: the registry's alias and the endpoint's traffic, moved together.

The assets, the sensors and the command line all go through here. A promotion builds the Bento, moves the
traffic, then the alias; a new champion begins with the alias and reaches the traffic by its endpoint asset.
Each takes its turn at a model, so that traffic and alias agree when it is over; who was overtaken while it waited
changes nothing and is told by whom. Each step is idempotent; a process killed between two of them is completed by
asking again. A serving process that refuses a release changes the traffic alone: `settle` brings the registry after it.

How a candidate that passed its gate takes over is declared, in two parts that are free of each other. `approval` says
whether a person has to be asked first: until one has said yes the champion stays, and nothing is built or released.
`Serve.canary` says how it takes the traffic then: `[100]` all at once, more steps one after the other, each judged by
an online comparison. Neither holds for the first release's share (it takes everything: nothing is there to compare it
with), but the first one too has to be approved. A person who promotes a version by hand has approved it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import ModelPipeline, Serve
from resources.approvals import APPROVED, WAITING, Approval, ApprovalStore
from resources.champions import ALIAS
from resources.release_record import Limits, refusals
from resources.releases import StaleReleaseError

if TYPE_CHECKING:
    from resources.bentos import BentoStore
    from resources.champions import ChampionMove, ChampionStore
    from resources.mlflow import MlflowResource, Version
    from resources.releases import ReleaseRecord, ReleaseStore

GATE = "gate"
PASSED, REFUSED = "passed", "refused"
NAMED = 20  # so many promotable versions are named to who asked for another
BENTO = "bento"
ROLLED_BACK = "rolled_back"
REFUSED_BECAUSE = "refused_because"
PARITY = "feature_parity"
APPROVAL, APPROVAL_BECAUSE = "approval", "approval_because"


class NotPromotableError(RuntimeError):
    """A version was to be promoted that may not be."""

    @classmethod
    def of(cls, model: str, asked: str, why: str, promotable: list[str]) -> Self:
        return cls(
            f"{model!r} cannot promote {asked}: {why} (promotable: {', '.join(promotable) or 'none'}). "
            f"Materialize '{model}/candidate' for a new one."
        )


@dataclass(frozen=True)
class Crowned:
    """The champion, None where nothing may be; its move, if it is new; and a newer version that waits for approval."""

    champion: Version | None
    move: ChampionMove | None
    waiting: Approval | None


@dataclass(frozen=True)
class Promotion:
    """The stores that a promotion touches."""

    mlflow: MlflowResource
    bentos: BentoStore
    releases: ReleaseStore
    champions: ChampionStore
    approvals: ApprovalStore = field(default_factory=ApprovalStore)

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Self:
        return cls(resources["mlflow"], resources["bentos"], resources["releases"], resources["champions"])

    @classmethod
    def here(cls) -> Self:
        """The stores of this environment."""
        from resources.environment import resources_for

        return cls.of(resources_for())

    def next_champion(self, model: ModelPipeline) -> Version | None:
        """The newest version that passed its gate, was not rolled back and, if need be, was approved; None without one.

        The champion of now needs no approval to remain it.
        """
        fit = self._fit(model)
        if model.approval is not None:
            allowed = {*self.approvals.approved(model.id), self.mlflow.alias(model.registered_name, ALIAS)}
            fit = (version for version in fit if version.version in allowed)
        return next(fit, None)

    def crown(self, model: ModelPipeline, version: str, *, by: str, why: str) -> ChampionMove | None:
        """Move the alias `champion`; None when it is there already. Older versions need no approval any more."""
        if model.approval is not None:
            self.approvals.supersede(model.id, version, by=by)
        return self.champions.move(self.mlflow, model.id, model.registered_name, version, by=by, why=why)

    def bento_of(self, model: ModelPipeline, version: str) -> str:
        """The tag of the version's Bento, built from the registry when it is not there yet."""
        bundle = self.mlflow.download(model.registered_name, version)
        run_id = self.mlflow.version(model.registered_name, version).run_id
        tag = self.bentos.build(bundle, model.id, {"version": version, "run_id": run_id})
        self.mlflow.tag_version(model.registered_name, version, {BENTO: tag})
        return tag

    def crown_newest(self, model: ModelPipeline, *, by: str) -> Crowned:
        """Make the newest promotable version the champion; a newer one that needs a person's word is asked about."""
        self.settle(model, by=by)
        with self.champions.turn(model.id):
            waiting, newest = self._awaited(model, by), self.next_champion(model)
            move = self.crown(model, newest.version, by=by, why=self._passed(model, newest)) if newest else None
        return Crowned(newest, move, waiting)

    def promote(self, model: ModelPipeline, version: str | None, *, by: str, why: str) -> ReleaseRecord:
        """All traffic and the alias to `version`, or to the challenger, or to the newest that passed its gate.

        Who promotes a version by hand approves it. Raises NotPromotableError for a version that did not pass its gate,
        StaleReleaseError for one that another move overtook.
        """
        self.settle(model, by=by)
        now = self.releases.read(model.id)
        if version is None and now is not None and now.challenger is not None:
            version = now.challenger.version
        chosen = self._chosen(model, version)
        tag = self.bento_of(model, chosen)
        with self._turn(model, now) as revision:
            if model.approval is not None:
                self.approvals.overrule(model.id, chosen, by=by, why=f"promoted by hand: {why}")
            record = self.releases.release(model.id, tag, chosen, by=by, why=why, revision=revision)
            self._follow(model, record, by=by, why=why)
        return record

    def rollback(self, model: ModelPipeline, *, by: str, why: str, revision: int | None = None) -> ReleaseRecord:
        """All traffic and the alias back to the release before; the version left is not promoted again by itself.

        `revision` is the one that the caller decided on, by default the one it finds. StaleReleaseError when another
        move came first: two rollbacks at once would else undo each other.
        """
        now = self.releases.read(model.id)
        if now is not None and revision not in (None, now.revision):
            raise StaleReleaseError.of(model.id, revision or 0, now)
        with self._turn(model, now) as seen:
            half_done = now is not None and self._half_rolled_back(model, now)
            record = now if now and half_done else self.releases.rollback(model.id, by=by, why=why, revision=seen)
            self._follow(model, record, by=by, why=why)
        return record

    def split(self, model: ModelPipeline, version: str, percent: int, *, by: str, why: str) -> ReleaseRecord:
        """A version beside the champion with so many percent, until somebody changes it.

        It must have passed its gate, as what is promoted must: its answers are used.
        """
        now = self.releases.read(model.id)
        chosen = self._chosen(model, version)
        tag = self.bento_of(model, chosen)
        with self._turn(model, now) as revision:
            record = self.releases.split(model.id, tag, chosen, percent, by=by, why=why, revision=revision)
            self._follow(model, record, by=by, why=why)
        return record

    def champion_only(self, model: ModelPipeline, *, by: str, why: str) -> ReleaseRecord:
        """End a canary or a split in the champion's favour; the alias is the champion's again."""
        with self._turn(model, self.releases.read(model.id)) as revision:
            record = self.releases.champion_only(model.id, by=by, why=why, revision=revision)
            if (
                record.change.action == "champion only"
            ):  # else no challenger was there, and an alias ahead is on its way
                self._follow(model, record, by=by, why=why)
        return record

    def shadow(self, model: ModelPipeline, version: str, *, by: str, why: str) -> ReleaseRecord:
        """Any registered version as the shadow: whether it is good is what a shadow is to find out."""
        now = self.releases.read(model.id)
        tag = self.bento_of(model, version)
        with self._turn(model, now) as revision:
            return self.releases.shadow(model.id, tag, version, by=by, why=why, revision=revision)

    def unshadow(self, model: ModelPipeline, *, by: str, why: str) -> ReleaseRecord:
        """End the shadow."""
        with self._turn(model, self.releases.read(model.id)) as revision:
            return self.releases.unshadow(model.id, by=by, why=why, revision=revision)

    def settle(self, model: ModelPipeline, *, by: str) -> ReleaseRecord | None:
        """Bring the registry after what serving processes refused; the record, or None where nothing was to be done.

        Their versions are marked, with the reason, and not promoted again by themselves. An alias on one of them goes
        to the version that answers instead.
        """
        if not self._refused(model):
            return None
        with self.champions.turn(model.id):
            now, refused = self.releases.read(model.id), self._refused(model)
            marked = [
                self._mark(model, version, {ROLLED_BACK: "true", REFUSED_BECAUSE: why})
                for version, why in refused.items()
            ]
            alias = self.mlflow.alias(model.registered_name, ALIAS)
            if now is not None and alias is not None and alias in refused:
                marked.append(self.crown(model, now.champion.version, by=by, why=refused[alias]) is not None)
        return now if any(marked) else None

    def show(self, model: ModelPipeline, approval: Approval) -> None:
        """Tag a version with what was decided about it; one that was deleted since needs no tag."""
        because = f"by {approval.by} at {approval.decided_at}: {approval.why}" if approval.by else ""
        self._mark(model, approval.version, {APPROVAL: approval.state, APPROVAL_BECAUSE: because})

    def _fit(self, model: ModelPipeline) -> Iterator[Version]:
        """What passed its gate and was not rolled back, from the newest."""
        return self.mlflow.newest_first(model.registered_name, {GATE: PASSED}, {ROLLED_BACK: "true"})

    def _awaited(self, model: ModelPipeline, by: str) -> Approval | None:
        """The question about the newest fit version, asked if nobody did; None where nobody has to be asked."""
        if model.approval is None:
            return None
        self.approvals.expire(model.id)
        newest = next(self._fit(model), None)
        if newest is None or newest.version == self.mlflow.alias(model.registered_name, ALIAS):
            return None
        told = f"{newest.tags.get('metric_name')} {newest.tags.get('metric')} on its holdout"
        why = f"passed its gate as of {newest.tags.get('cutoff')}, {told}"
        asked = self.approvals.ask(model.id, newest.version, expires=model.approval.expires, by=by, why=why)
        return asked if asked.state == WAITING else None

    def _passed(self, model: ModelPipeline, version: Version) -> str:
        """Why a version becomes champion."""
        why = f"passed its gate as of {version.tags.get('cutoff')}"
        word = self.approvals.read(model.id, version.version) if model.approval is not None else None
        return f"{why}; approved by {word.by}: {word.why}" if word and word.state == APPROVED else why

    def _refused(self, model: ModelPipeline) -> dict[str, str]:
        """By version, why a serving process refused its answers; not of those that got traffic again since."""
        now = self.releases.read(model.id)
        answering = {variant.version for variant in now.answering} if now else set()
        return {
            variant.version: f"{change.action} at {change.at}: {change.why}"
            for variant, change in refusals(self.releases.history(model.id)).values()
            if variant.role != "shadow" and variant.version not in answering
        }

    def _mark(self, model: ModelPipeline, version: str, told: Mapping[str, str]) -> bool:
        """Tag a version; False where its tags say so already, or where it was deleted since and needs none.

        Read one by one: a model may have thousands of versions, and few of them had traffic.
        """
        tags = self._tags(model, version)
        if tags is None:
            return False
        news = _news(told, tags)
        self.mlflow.tag_version(model.registered_name, version, news)
        return bool(news)

    @contextmanager
    def _turn(self, model: ModelPipeline, seen: ReleaseRecord | None) -> Iterator[int]:
        """The turn at the model, with the revision that was `seen` before; StaleReleaseError if it moved meanwhile."""
        revision = seen.revision if seen else 0
        with self.champions.turn(model.id):
            now = self.releases.read(model.id)
            if now is not None and now.revision != revision:
                raise StaleReleaseError.of(model.id, revision, now)
            yield revision

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
        chosen, answering = record.champion.version, {variant.version for variant in record.answering}
        history = self.releases.history(model.id)
        had_traffic = {v.version for change in history for v in change.after if v.role != "shadow"}
        for version in sorted(had_traffic, key=int):
            if int(version) >= int(chosen):
                self._mark(model, version, _answers() if version in answering else {ROLLED_BACK: "true"})
        self.crown(model, chosen, by=by, why=why)

    def _chosen(self, model: ModelPipeline, version: str | None) -> str:
        if version is None:
            newest = self._newest_by_hand(model)
            if newest is None:
                raise self._not_promotable(model, "anything", "no version passed its gate")
            version = str(newest.version)
        tags = self._tags(model, version)
        if tags is None:
            raise self._not_promotable(model, f"version {version}", "it does not exist")
        if tags.get(GATE) != PASSED:
            raise self._not_promotable(model, f"version {version}", "it did not pass its gate")
        if tags.get(PARITY) == REFUSED:
            why = "its Bento reads features online that differ from those offline (check feature_parity)"
            raise self._not_promotable(model, f"version {version}", why)
        return version

    def _not_promotable(self, model: ModelPipeline, asked: str, why: str) -> NotPromotableError:
        fit = self.mlflow.versions(model.registered_name, {GATE: PASSED}, limit=NAMED)
        return NotPromotableError.of(model.id, asked, why, [version.version for version in fit])

    def _tags(self, model: ModelPipeline, version: str) -> Mapping[str, str] | None:
        """A version's tags; None where there is no such version."""
        from resources.mlflow import UnknownModelVersionError

        try:
            return self.mlflow.version(model.registered_name, version).tags
        except UnknownModelVersionError:
            return None

    def _newest_by_hand(self, model: ModelPipeline) -> Version | None:
        """What a person means who names no version: the newest that may be, or that waits for this very word."""
        if model.approval is None:
            return self.next_champion(model)
        against = {item.version for item in self.approvals.history(model.id) if item.state not in (APPROVED, WAITING)}
        alias = self.mlflow.alias(model.registered_name, ALIAS)
        return next((v for v in self._fit(model) if v.version not in against or v.version == alias), None)


def _answers() -> dict[str, str]:
    """The tags of a version that answers, whatever was said of it before."""
    return {ROLLED_BACK: "false", REFUSED_BECAUSE: ""}


def _news(told: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """What the tags do not say yet; an empty one is as good as none."""
    return {name: text for name, text in told.items() if text != tags.get(name, "")}


def limits_of(serve: Serve) -> Limits:
    """The bounds of a canary as the release record carries them to the serving process."""
    return Limits(serve.max_error_share, serve.max_latency_ratio, serve.min_requests)
