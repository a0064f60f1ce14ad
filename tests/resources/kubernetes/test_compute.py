"""Work in a pod: over the real client and the real wire, by a worker that is a process, whatever becomes of the pod."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.errors import DagsterExecutionInterruptedError

from resources.compute import ComputeResource, NoWorkerError, OtherEnvironmentError, WorkerLostError
from resources.kubernetes.cluster import SETTINGS
from tests.resources.conftest import free_port
from tests.resources.kubernetes.api_server import (
    Api,
    Life,
    Pod,
    RefusedError,
    dies,
    runs_until,
    stays,
    works,
    works_until,
)

ERRANDS = "tests.resources.compute.errands"
Do = Callable[..., Any]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def do(home: Path) -> Do:
    """Have an asset ask for work in a pod; what it got, or what was raised. `do.told` is the run's log then."""

    def asked(entrypoint: str = "copy:copy", arguments: dict[str, Any] | None = None, **resources: Any) -> Any:
        got: list[Any] = []

        @dg.asset(key=["flights", "late_arrival", "candidate"])
        def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
            got.append(compute.run(entrypoint, arguments or {"rows": 3}, context, resources=resources))
            return dg.MaterializeResult()

        compute = ComputeResource(kind="kubernetes")
        with dg.DagsterInstance.ephemeral() as instance:
            try:
                dg.materialize([errand], instance=instance, resources={"compute": compute}, run_config=QUIET)
            finally:
                run = instance.get_runs()[0]
                asked.told = [event.user_message for event in instance.all_logs(run.run_id)]  # type: ignore[attr-defined]
        return got[0]

    return asked


def within(seconds: float, call: Callable[[], Any]) -> float:
    """What is raised is raised in time: a hang would be the fault that is looked for."""
    began = time.monotonic()
    try:
        call()
    finally:
        assert time.monotonic() - began < seconds
    return time.monotonic() - began


def test_what_the_work_logs_is_in_the_run_and_the_pod_is_gone(do: Do, cluster: Api) -> None:
    """JSON in, JSON out; each step of the pod, and each line of the work, while it works."""
    assert do(f"{ERRANDS}:talk", {"say": "trial 3: roc_auc 0.71"}) == {}
    assert any("trial 3: roc_auc 0.71" in line for line in do.told)  # type: ignore[attr-defined]
    assert any(line.endswith("runs") for line in do.told)  # type: ignore[attr-defined]
    assert not cluster.pods


BEFALLS: dict[str, tuple[Life, str]] = {
    "its pod is deleted": (lambda api, pod: api.vanish("mlops", pod), "was lost: its pod was deleted"),
    "it is evicted": (
        dies({"exitCode": 137}, reason="Evicted", message="The node was low on resource: memory."),
        "was evicted: The node was low on resource: memory",
    ),
    "it has no memory": (dies({"reason": "OOMKilled"}), "for want of memory"),
    "its spot node is taken": (
        dies(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]),
        "was taken off its node .*TerminationByKubelet",
    ),
    "it runs too long": (dies(reason="DeadlineExceeded"), "ran longer than it may"),
    "its node is lost": (
        lambda _api, pod: pod.body["status"].update(phase="Unknown", reason="NodeLost"),
        "was lost with its node",
    ),
    "its node is silent": (
        lambda _api, pod: pod.body["status"].update(
            conditions=[{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
        ),
        "which no longer answers",
    ),
    "the API is silent": (
        lambda api, _pod: api.refuses.update({"GET": RefusedError(503, "unable to handle the request")}),
        "can no longer be watched.*503 unable",
    ),
}


@pytest.mark.parametrize("what", BEFALLS)
def test_work_that_is_lost_is_reported_with_its_cause(do: Do, cluster: Api, tmp_path: Path, what: str) -> None:
    """And never waited for."""
    befalls, cause = BEFALLS[what]
    cluster.lives.append((works_until if what == "its pod is deleted" else runs_until)(befalls))
    with pytest.raises(WorkerLostError, match=cause):
        within(60, lambda: do(f"{ERRANDS}:tell_and_wait", {"path": str(tmp_path / "pid")}))


def test_work_that_dies_by_itself_is_reported_with_its_signal_and_last_words(do: Do, cluster: Api) -> None:
    with pytest.raises(WorkerLostError, match=r"was killed by SIGKILL \(exit code 137\)"):
        do("tests.resources.kubernetes.errands:say_and_die", {"say": "the disk is full"})
    assert any("the disk is full" in line for line in do.told)  # type: ignore[attr-defined]


def unschedulable(_api: Api, pod: Pod) -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod.is_("Pending", conditions=[condition])


def unmounted(api: Api, pod: Pod) -> None:
    pod.is_("Pending", {"waiting": {"reason": "ContainerCreating"}})
    api.event(pod, "FailedMount", 'persistentvolumeclaim "mlops-home" not found')


def failing_init(_api: Api, pod: Pod) -> None:
    pod.init({"terminated": {"exitCode": 2, "reason": "Error"}})


def waits(reason: str, message: str) -> Life:
    return stays("Pending", {"waiting": {"reason": reason, "message": message}})


NEVER_BEGINS: dict[str, tuple[Life, str]] = {
    "no node has room": (unschedulable, "not begun within 1 s: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"),
    "no volume": (unmounted, r"not begun within 1 s: ContainerCreating \[FailedMount: .*mlops-home"),
    "init fails": (failing_init, "init container 'fetch' ended with exit code 2"),
    "no image": (
        waits("ImagePullBackOff", "Back-off pulling"),
        r"registry.example/mlops:1.4.0\) cannot start .*Back-off",
    ),
    "image never pulled": (waits("ErrImagePull", "manifest unknown"), "ErrImagePull: manifest unknown"),
    "no name of an image": (waits("InvalidImageName", "couldn't parse"), "InvalidImageName: couldn't parse"),
    "no secret": (waits("CreateContainerConfigError", 'secret "mlops" not found'), 'secret "mlops" not found'),
}


@pytest.mark.parametrize("what", NEVER_BEGINS)
def test_work_that_cannot_begin_is_reported_with_what_the_cluster_says(do: Do, cluster: Api, what: str) -> None:
    """Also where the cluster would let it wait for ever. It is no loss of a worker: another try finds the same."""
    life, cause = NEVER_BEGINS[what]
    cluster.lives.append(life)
    with pytest.raises(NoWorkerError, match=cause):
        within(60, lambda: do(start_within_seconds=1.0, retries=2))
    assert len(cluster.created) == 1
    assert not cluster.pods


def test_a_machine_that_is_taken_away_is_replaced(do: Do, cluster: Api, tmp_path: Path) -> None:
    """As often as the resources say; the first pod has gone before the second begins, for both write to one place."""
    preempted = [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]
    cluster.lives += [works_until(dies(conditions=preempted)), works]
    told = f"{ERRANDS}:talk", {"say": "done"}
    assert do(*told, retries=1) == {}
    first, second = (line for line in cluster.asked if line.startswith("POST"))
    deleted = next(line for line in cluster.asked if line.startswith("DELETE"))
    at = cluster.asked.index
    assert at(first) < at(deleted) < len(cluster.asked) - 1 - cluster.asked[::-1].index(second)
    assert any("PreemptionByScheduler" in line and "begun again" in line for line in do.told)  # type: ignore[attr-defined]


def test_a_pod_that_nobody_removes_is_waited_for_only_so_long(do: Do, cluster: Api) -> None:
    """A node that is gone never says that its pod has ended, and Kubernetes keeps it in its list."""
    cluster.keeps_deleted = True
    lost = runs_until(lambda _api, pod: pod.body["status"].update(phase="Unknown", reason="NodeLost"))
    cluster.lives += [lost, works]
    assert do(retries=1) == {"rows": 3}
    assert len(cluster.pods) == 2


def test_a_blip_of_the_api_is_not_the_end(do: Do, cluster: Api) -> None:
    """A server that is replaced answers 503 for a moment, and the pod is as it was."""

    def blip(api: Api, _pod: Pod) -> None:
        api.refuses["GET"] = RefusedError(503, "unable to handle the request")
        time.sleep(0.4)
        api.refuses.clear()

    cluster.lives.append(works_until(blip))
    assert do() == {"rows": 3}


def test_a_proxy_beside_the_work_is_not_waited_for(do: Do, cluster: Api) -> None:
    """What a mesh puts into every pod never ends; the log that is read is that of the work."""
    proxy = {"name": "proxy", "image": "mesh:1"}
    changed(run_k8s_config={"pod_spec_config": {"containers": [proxy]}})
    assert do() == {"rows": 3}
    assert [one["name"] for one in cluster.created[0]["spec"]["containers"]] == ["work", "proxy"]


def test_a_pod_that_is_removed_as_soon_as_it_ended_has_ended(do: Do, cluster: Api) -> None:
    """Dagster would wait a day for it to be there again."""

    def cleared(api: Api, pod: Pod) -> None:
        works(api, pod)
        time.sleep(0.3)
        api.vanish("mlops", pod)

    cluster.lives.append(cleared)
    assert do() == {"rows": 3}


def test_a_log_that_may_not_be_read_is_named(do: Do, cluster: Api) -> None:
    """Without it there is no result; the run says why."""
    cluster.refuses["/log"] = RefusedError(403, "pods/log is forbidden")
    cluster.lives.append(runs_until(stays("Succeeded", {"terminated": {"exitCode": 0}})))
    with pytest.raises(WorkerLostError, match="ended without a result"):
        do()
    assert any("could not be read to its end" in line and "403" in line for line in do.told)  # type: ignore[attr-defined]


def test_a_worker_with_other_packages_is_refused_before_it_begins(do: Do, cluster: Api, tmp_path: Path) -> None:
    """An image that was built from other constraints: each difference is named."""
    other = tmp_path / "other" / "polars-0.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: polars\nVersion: 0.1.0\n")
    changed(env=[{"name": "PYTHONPATH", "value": str(other.parent)}])
    marker = tmp_path / "began"
    with pytest.raises(OtherEnvironmentError, match=r"polars 0\.1\.0 instead of \d"):
        do(f"{ERRANDS}:touch", {"path": str(marker)})
    assert not marker.exists()


def test_a_run_that_is_cancelled_leaves_no_pod(do: Do, cluster: Api, tmp_path: Path) -> None:
    cluster.lives.append(runs_until(lambda _api, _pod: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(DagsterExecutionInterruptedError):
        do(f"{ERRANDS}:tell_and_wait", {"path": str(tmp_path / "pid")})
    assert all("deletionTimestamp" in pod.body["metadata"] for pod in cluster.pods.values())
    assert any(line.startswith("DELETE") for line in cluster.asked)


# -- bad input: before any work


def changed(**settings: Any) -> None:
    """The file of settings, otherwise."""
    path = Path(os.environ[SETTINGS])
    told = yaml.safe_load(path.read_text()) | settings
    path.write_text(yaml.safe_dump({name: value for name, value in told.items() if value is not None}))


def at(kubeconfig: Path, change: Callable[[str], str]) -> str:
    """Have the kubeconfig name another address; that address."""
    config = yaml.safe_load(kubeconfig.read_text())
    entry = config["clusters"][0]["cluster"]
    entry["server"] = change(entry["server"])
    kubeconfig.write_text(yaml.safe_dump(config))
    return str(entry["server"])


@pytest.mark.parametrize(
    "change",
    [lambda _: f"http://127.0.0.1:{free_port()}", lambda address: address.replace("http:", "https:")],
    ids=["nobody there", "no TLS there"],
)
def test_a_cluster_that_cannot_be_reached_is_named_within_seconds(
    do: Do, cluster: Api, tmp_path: Path, change: Callable[[str], str]
) -> None:
    address = at(tmp_path / "kubeconfig.yaml", change)
    with pytest.raises(NoWorkerError, match=f"{address}.*does not answer.*kubectl version"):
        within(30, do)
    assert not cluster.created


def test_without_a_cluster_it_is_said_where_to_name_one(do: Do, cluster: Api, tmp_path: Path) -> None:
    changed(kubeconfig=str(tmp_path / "none.yaml"))
    with pytest.raises(NoWorkerError, match=f"no configuration of a cluster.*{SETTINGS}"):
        do()
    changed(kubeconfig=str(tmp_path / "kubeconfig.yaml"), context="elsewhere")
    with pytest.raises(NoWorkerError, match="elsewhere"):
        do()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": None}, r"no image is named.*Resources\(image=...\)"),
    "home not mounted": ({"volume_mounts": []}, "no volume of the pods is mounted at MLOPS_HOME, .*mounted: none"),
    "no such setting": ({"imag": "mlops:1"}, 'Received unexpected config entry "imag"'),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_would_lose_the_work_are_refused(do: Do, cluster: Api, what: str) -> None:
    settings, problem = REFUSED[what]
    changed(**settings)
    with pytest.raises(NoWorkerError, match=problem):
        do()
    assert not cluster.created


def test_settings_that_cannot_be_read_are_named(do: Do, cluster: Api) -> None:
    path = Path(os.environ[SETTINGS])
    path.write_text("- a list")
    with pytest.raises(NoWorkerError, match="holds no mapping"):
        do()
    path.unlink()
    with pytest.raises(NoWorkerError, match=f"{path.name}.* cannot be read"):
        do()


def test_what_the_cluster_refuses_is_said_in_its_words(do: Do, cluster: Api) -> None:
    quota = 'pods "x" is forbidden: exceeded quota: team, requested: requests.memory=64Gi'
    cluster.refuses["POST"] = RefusedError(403, quota)
    with pytest.raises(NoWorkerError, match=r"403 .*exceeded quota: team, requested: requests.memory=64Gi.*quota"):
        do(memory_gb=64.0)
