"""The records that say how something came about: releases, Bentos, Dagster's events, the registry, the lake.

Whoever asks wants all that is still known: a store that is down, or has lost something, is named among `problems` and
the rest is told. MLflow is asked last, for a Bento and Dagster's events say the same without a server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from mlops_assets.catalog import Catalog

if TYPE_CHECKING:
    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.bentos import BentoStore
    from resources.lake import Lake
    from resources.mlflow import MlflowResource
    from resources.releases import ReleaseStore

Document = dict[str, Any]
Found = TypeVar("Found")
EVENTS_A_PARTITION = 5
VERSIONS = 1000  # materializations looked through for one version


@dataclass
class Records:
    """The stores; `problems` grows by a line for each thing that could not be found out."""

    catalog: Catalog
    lake: Lake
    log: PredictionLog
    releases: ReleaseStore
    bentos: BentoStore
    mlflow: MlflowResource
    instance: dg.DagsterInstance | None = None
    problems: list[str] = field(default_factory=list)

    def ask(self, what: str, call: Callable[..., Found], *args: Any) -> Found | None:
        """What a store answers; None, and a problem told, where it has no answer."""
        try:
            return call(*args)
        except Exception as problem:  # noqa: BLE001  # whatever is wrong with one store, the others are still asked
            self.tell(f"{what}: {' '.join(str(problem).split()) or type(problem).__name__}")
            return None

    def anew(self) -> Records:
        """For the next question: with no other problems than those known now."""
        return replace(self, problems=list(self.problems))

    def tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    # -- Dagster

    def events(self, key: dg.AssetKey, partitions: Sequence[str] | None, limit: int = 1) -> list[Document]:
        """The newest materializations: run, time, partition, metadata. None are known without Dagster."""
        if self.instance is None:
            return []
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=list(partitions) if partitions else None)
        found = self.ask("Dagster's events", lambda of: of.fetch_materializations(wanted, limit=limit), self.instance)
        if found is None:
            self.instance = None  # it would let every further question wait as long
            return []
        return [_event(record) for record in found.records]

    # -- releases and Bentos

    def release(self, model: str, tag: str, answered: datetime) -> Document:
        """The change of the release record by which a Bento answered at a moment."""
        changes = [
            change
            for change in self.ask("the release history", self.releases.history, model) or []
            if tag in [variant.release for variant in change.after]
        ]
        if not changes:
            self.tell(f"the release history: no change of {model} names {tag}")
            return {}
        before = [change for change in changes if datetime.fromisoformat(change.at) <= answered]
        change = before[-1] if before else changes[0]
        told = {name: getattr(change, name) for name in ("revision", "action", "at", "by", "why")}
        return {**told, "traffic": [asdict(variant) for variant in change.after]}

    def manifest(self, tag: str) -> Document:
        """What a Bento says of itself; nothing where it was deleted."""
        return self.ask("the Bento", lambda: json.loads((self.bentos.path(tag) / "manifest.json").read_bytes())) or {}

    # -- models

    def candidate(self, model: str, version: str, manifest: Mapping[str, Any]) -> Document:
        """A registered version: its MLflow run, its cutoff and the run of Dagster that trained it."""
        event = self._trained(model, version, manifest.get("cutoff"))
        told: Document = {
            "version": version,
            "cutoff": manifest.get("cutoff") or event.get("partition"),
            "mlflow_run_id": manifest.get("run_id") or event.get("mlflow_run_id"),
            "mlflow_url": event.get("mlflow_run"),
            "dagster_run_id": manifest.get("dagster_run_id") or event.get("run_id"),
            "training_set_hash": manifest.get("training_set", {}).get("hash"),
            "git_commit": manifest.get("git_commit"),
            "metric": manifest.get("metric"),
        }
        if told["mlflow_run_id"] is None or told["cutoff"] is None:
            told |= self.ask("MLflow", self._registered, model, version) or {}
        return told

    def _trained(self, model: str, version: str, cutoff: str | None) -> Document:
        events = self.events(link_key(model, "candidate"), [cutoff] if cutoff else None, VERSIONS)
        event = next((event for event in events if str(event["metadata"].get("version")) == version), None)
        if event is None:
            if self.instance is not None:
                self.tell(f"Dagster's events: none tells of version {version} of {model}")
            return {}
        wanted = {name: event["metadata"].get(name) for name in ("mlflow_run_id", "mlflow_run")}
        return {**wanted, "run_id": event["run_id"], "partition": event["partition"]}

    def _registered(self, model: str, version: str) -> Document:
        found = self.mlflow.version(model.replace("/", "."), version)
        tags = self.mlflow.client().get_run(found.run_id).data.tags
        return {
            "cutoff": found.tags.get("cutoff"),
            "mlflow_run_id": found.run_id,
            "mlflow_url": self.mlflow.run_url(found.run_id),
            "dagster_run_id": tags.get("dagster/run_id"),
            "training_set_hash": tags.get("training_set_hash") or None,
            "git_commit": tags.get("git_commit"),
        }

    def training_set(self, model: str, cutoff: str, content_hash: str | None) -> Document:
        """The table a version was trained on: where it lies, and the run that published it with that content."""
        key = link_key(model, "training_set")
        told: Document = {"asset": key.to_user_string(), "partition": cutoff, "hash": content_hash}
        path = self.lake.path(key, cutoff)
        told["path"] = str(path) if path.exists() else None
        if told["path"] is None:
            self.tell(f"the lake: {key.to_user_string()} [{cutoff}] is not there any more")
        events = self.events(key, [cutoff], VERSIONS)
        event = next((one for one in events if one["metadata"].get("content_hash") == content_hash), None)
        if event:
            told |= {"rows": event["metadata"].get("dagster/row_count"), "dagster_run_id": event["run_id"]}
            told["published_at"] = event["at"]
        if events and events[0] is not event:
            self.tell(f"the training set of {cutoff} was published anew since, with other rows")
        return told

    def publication(self, key: dg.AssetKey, partition: str, before: datetime | None = None) -> Document:
        """A partition of a table: where it lies, and the run that published it last (before a moment)."""
        whole = partition == "all"
        path = self.lake.path(key, None if whole else partition)
        told: Document = {"asset": key.to_user_string(), "partition": partition}
        told["path"] = str(path) if path.exists() else None
        if told["path"] is None:
            self.tell(f"the lake: {key.to_user_string()} [{partition}] is not there any more")
        events = self.events(key, None if whole else [partition], 20)
        earlier = [event for event in events if before is None or datetime.fromisoformat(event["at"]) <= before]
        if event := next(iter(earlier or events), None):
            told |= {"dagster_run_id": event["run_id"], "published_at": event["at"]}
        if before is not None and events and events[0] not in earlier[:1]:
            self.tell(f"{key.to_user_string()} [{partition}] was published anew after the answer")
        return told

    def publishers(self, key: dg.AssetKey, partitions: Sequence[str], before: str | None) -> list[str]:
        """The runs that published the partitions last before a moment (of ISO-8601), oldest first."""
        if not partitions:
            return []
        whole = list(partitions) == ["all"]
        events = self.events(key, None if whole else partitions, EVENTS_A_PARTITION * len(partitions))
        newest: dict[str | None, Document] = {}
        for event in events:
            if before is None or event["at"] <= before:
                newest.setdefault(event["partition"], event)
        return list(dict.fromkeys(event["run_id"] for event in sorted(newest.values(), key=lambda one: one["at"])))


@contextmanager
def records() -> Iterator[Records]:
    """Those of this environment. Dagster may be away."""
    from mlops_assets.catalog import gather
    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.environment import prepare_home, resources_for

    stores = resources_for()
    found = Records(
        gather(),
        stores["lake"],
        PredictionLog(),
        stores["releases"],
        stores["bentos"],
        stores["mlflow"],
    )
    prepare_home()
    instance = found.ask("Dagster", dg.DagsterInstance.get)
    if instance is None:
        yield found
        return
    with instance:
        found.instance = instance
        yield found


def link_key(model: str, link: str) -> dg.AssetKey:
    return dg.AssetKey([*model.split("/"), link])


def _event(record: dg.EventLogRecord) -> Document:
    materialization = record.asset_materialization
    metadata = materialization.metadata if materialization else {}
    return {
        "run_id": record.run_id,
        "at": datetime.fromtimestamp(record.timestamp, UTC).isoformat(timespec="seconds"),
        "partition": materialization.partition if materialization else None,
        "metadata": {name: value.value for name, value in metadata.items()},
    }
