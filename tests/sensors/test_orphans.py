"""The sensor of orphans: a pod whose run is over or unknown goes, and no other."""

from __future__ import annotations

import re
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from hypothesis import given
from hypothesis import strategies as st

from resources.kubernetes.cluster import Cluster, ClusterError
from resources.kubernetes.owned import COMPONENT, RUN_WORKER, Owned, delete, label, owned, owner, platform
from sensors.orphans import GRACE_SECONDS, orphans, orphans_sensors
from tests.resources.conftest import cluster as cluster  # noqa: PLC0414  the fixture
from tests.resources.kubernetes.api_server import Api, Pod

NOW = 10_000.0
pods = st.builds(Owned, st.text("abc", min_size=1), st.text("01"), st.sampled_from("xyz"), st.just(""), st.booleans())


@given(st.lists(pods), st.dictionaries(st.sampled_from("xyz"), st.none() | st.floats(0, NOW)))
def test_a_pod_stays_exactly_while_its_run_goes_on_or_has_just_ended(
    found: list[Owned], ended: dict[str, float | None]
) -> None:
    gone = orphans(found, ended, NOW)
    for pod in found:
        end = ended.get(pod.run_id, 0.0)
        assert (pod in gone) == (end is not None and (pod.run_id not in ended or NOW - end >= GRACE_SECONDS))


def test_the_log_of_a_run_that_is_over_can_still_be_read() -> None:
    over, hanging = (Owned(name, "1", "x", over=name == "over", worker=True) for name in ("over", "hanging"))
    assert list(orphans([over, hanging], {"x": 0.0}, NOW)) == [hanging]


@given(st.text(min_size=1))
def test_a_label_is_one_that_kubernetes_takes(value: str) -> None:
    assert re.fullmatch(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?", label(value))
    assert len(label(value)) <= 63


def put(api: Api, name: str, labels: dict[str, str]) -> Pod:
    """A pod that runs, as somebody made it."""
    spec = {"containers": [{"name": "work", "image": "mlops:1"}]}
    api.lives.append(lambda _api, pod: pod.is_("Running", {"running": {}}))
    meta = {"name": name, "labels": labels}
    api.create("mlops", "pods", {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    return api.pod("mlops", name)


def test_pods_of_dead_runs_are_deleted_once_and_nobody_elses(cluster: Api) -> None:
    """Over the API, twice: another platform's pods, and those without labels, are not looked at."""
    key = dg.AssetKey(["flights", "late_arrival", "candidate"])
    with dg.DagsterInstance.ephemeral() as instance:
        going, over = (
            create_run_for_test(instance, status=status).run_id
            for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.FAILURE)
        )
        here = platform(instance)
        for name, run in {"goes-on": going, "over": over, "unknown": "0" * 8}.items():
            put(cluster, name, owner(run, here, key))
        put(cluster, "elsewhere", owner(over, "another-platform", key))
        put(cluster, "somebodys", {"app": "web"})
        put(cluster, "worker", owner(going, here, key) | {COMPONENT: RUN_WORKER})
        (sensor,) = orphans_sensors(lambda: time.time() + 2 * GRACE_SECONDS)
        told = sensor(dg.build_sensor_context(instance=instance))
        assert isinstance(told, dg.SkipReason)
        assert "over (flights.late_arrival.candidate): run" in str(told.skip_message)
        assert "unknown (flights.late_arrival.candidate): no run 00000000 is known" in str(told.skip_message)
        deleted = [line.rpartition("/")[2] for line in cluster.asked if line.startswith("DELETE")]
        assert sorted(deleted) == ["over", "unknown"]
        again = sensor(dg.build_sensor_context(instance=instance))
        assert isinstance(again, dg.SkipReason) and "is an orphan" in str(again.skip_message)


def test_a_pod_that_took_the_name_of_another_stays(cluster: Api) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        put(cluster, "same", owner("x", platform(instance), None))
        core = Cluster.of(instance).reach()
        (seen,) = owned(core, "mlops", platform(instance))
        cluster.vanish("mlops", cluster.pod("mlops", "same"))
        put(cluster, "same", owner("y", platform(instance), None))
        assert not delete(core, "mlops", seen)
        assert ("mlops", "same") in cluster.pods


def test_a_cluster_that_cannot_be_asked_fails_the_tick(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen on the sensor's page; where no cluster is named, there is no sensor."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("MLOPS_KUBERNETES", raising=False)
    assert not orphans_sensors(lambda: NOW)
    monkeypatch.setenv("MLOPS_KUBERNETES", str(home / "none.yaml"))
    (sensor,) = orphans_sensors(lambda: NOW)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(ClusterError, match=r"none\.yaml"):
        sensor(dg.build_sensor_context(instance=instance))
