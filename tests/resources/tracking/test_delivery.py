"""What a loop logs is in MLflow once, with its steps, whatever happens to the process, to MLflow or to the delivery."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.processes import free_port
from resources.mlflow import MlflowResource, server_command
from resources.tracking import delivery, spool
from resources.tracking.delivery import deliver_left
from resources.tracking.spool import BadPointError, Spool

STEPS = st.integers(-(2**63) + 1, 2**63 - 1)
NAMES = st.from_regex(r"[a-z][\w. :\-]{0,20}", fullmatch=True)

LOOP = """
import sys, time
from pathlib import Path
from resources.mlflow import MlflowResource
with MlflowResource().loop(sys.argv[1], every=3600) as log:
    for step in range(10**9):
        log(step, loss=1 / (step + 1), auc=step)
        if step == 1500:
            print("go", flush=True)
        time.sleep(0.0002)
"""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in {seconds} s"
        time.sleep(0.05)


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def history(store: MlflowResource, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client().get_metric_history(run_id, metric)]


def new_run(store: MlflowResource) -> str:
    with store.run("flights/late", "training") as run_id:
        return run_id


def test_a_loop_is_in_mlflow_when_it_ends(either: MlflowResource) -> None:
    """Every step and value, the latest where searches look, as MLflow itself would have it; no file is left."""
    run_id, other = new_run(either), new_run(either)
    told = {0: 0.5, 1: math.nan, 2: math.inf, 3: -math.inf, 5: 1e-300, 4: 0.25}
    with either.loop(run_id) as log:
        for step, value in told.items():
            log(step, loss=value, **{"trial 1/auc": step})
    for step, value in told.items():
        either.client().log_metric(other, "loss", value, step=step)
    assert history(either, run_id, "trial 1/auc") == [(step, float(step)) for step in sorted(told)]
    ours, theirs = history(either, run_id, "loss"), history(either, other, "loss")
    assert len(ours) == len(theirs) == 6
    assert repr(sorted(ours)) == repr(sorted(theirs))
    data = either.client().get_run(run_id).data.metrics
    assert data == {"loss": 1e-300, "trial 1/auc": 5.0}
    assert list(spool.directory().glob("*.points*")) == []


def test_a_loop_that_breaks_off_loses_nothing(store: MlflowResource) -> None:
    run_id = new_run(store)
    with pytest.raises(ZeroDivisionError), store.loop(run_id) as log:
        log(0, loss=1.0)
        raise ZeroDivisionError
    assert history(store, run_id, "loss") == [(0, 1.0)]


def test_a_loop_is_seen_while_it_runs(store: MlflowResource) -> None:
    run_id = new_run(store)
    with store.loop(run_id, every=0.05) as log:
        log(0, loss=1.0)
        until(lambda: history(store, run_id, "loss") == [(0, 1.0)])


def test_what_is_asked_meanwhile_is_asked_again_and_hinders_nothing(
    store: MlflowResource, caplog: pytest.LogCaptureFixture
) -> None:
    """Trials are told while they end; that MLflow refuses one is a line of the log, and the points go on."""
    run_id, trial = new_run(store), {"params": {}, "value": 0.7, "state": "COMPLETE", "seconds": 1.0}
    experiment, asked = store.experiment("flights/late"), list[float]()

    def meanwhile() -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            store.client().get_run("nobody's")
        store.log_trials(run_id, "auc", [trial | {"number": 0, "started_at": "2013-04-01T00:00:00+00:00"}])

    def children() -> int:
        return len(store.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'"))

    with store.loop(run_id, every=0.05, meanwhile=meanwhile) as log:
        until(lambda: len(asked) > 3 and children() == 1)
        log(0, loss=1.0)
        until(lambda: history(store, run_id, "loss") == [(0, 1.0)])
    assert children() == 1 and "MLflow was not told meanwhile" in caplog.text


def test_a_killed_process_loses_no_point(store: MlflowResource) -> None:
    """kill -9 in the middle of a loop of which nothing was delivered: another process delivers every step, once."""
    run_id = new_run(store)
    process = subprocess.Popen([sys.executable, "-c", LOOP, run_id], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "go\n"
    assert deliver_left(store).points == 0  # it lives, and delivers itself
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = deliver_left(store)
    steps = [step for step, _ in history(store, run_id, "loss")]
    assert len(steps) > 1500 and steps == list(range(len(steps)))
    assert told.points == sum(len(history(store, run_id, name)) for name in ("loss", "auc"))
    assert deliver_left(store).points == 0 and list(spool.directory().glob("*.points*")) == []


def test_a_delivery_that_broke_off_is_repeated_without_harm(
    either: MlflowResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after MLflow took the points and before that was noted."""
    run_id = new_run(either)
    path = spool.new_path(run_id)
    with Spool(path) as writer:
        for step in range(50):
            writer.log(step, {"loss": step / 7})
    with monkeypatch.context() as patched:
        patched.setattr(spool, "note_delivered", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            delivery.deliver(either, path)
    assert len(history(either, run_id, "loss")) == 50 and spool.delivered(path) == 0
    assert delivery.deliver(either, path) == 50
    assert history(either, run_id, "loss") == [(step, step / 7) for step in range(50)]


def test_half_a_line_is_no_point(store: MlflowResource, caplog: pytest.LogCaptureFixture) -> None:
    """What a torn write left is skipped and told; what was written before and after it arrives."""
    run_id = new_run(store)
    path = spool.new_path(run_id)
    with Spool(path) as writer:
        writer.log(0, {"loss": 1.0})
    with path.open("ab") as file:
        file.write(b"17\t1\tlo")
    assert delivery.deliver(store, path) == 1
    with Spool(path) as writer:
        writer.log(2, {"loss": 3.0})
    assert delivery.deliver(store, path) == 1 and "1 lines" in caplog.text
    assert history(store, run_id, "loss") == [(0, 1.0), (2, 3.0)]


def test_points_of_a_deleted_run_are_set_aside(either: MlflowResource) -> None:
    """They do not stand in the way of others, and are not thrown away."""
    gone, there = new_run(either), new_run(either)
    either.client().delete_run(gone)
    for run_id in (gone, there, "0" * 32):
        with Spool(spool.new_path(run_id)) as writer:
            writer.log(0, {"loss": 1.0})
    told = deliver_left(either)
    assert told.points == 1 and len(told.refused) == 2 and "deleted" in " ".join(told.refused.values())
    assert history(either, there, "loss") == [(0, 1.0)]
    assert len(list((spool.directory() / "refused").glob("*.points"))) == 2
    assert deliver_left(either) == delivery.Delivered(0, {}, {})


def test_points_wait_for_a_server_that_is_away(store: MlflowResource, home: Path) -> None:
    """The loop ends well, its points stay; once the server is there they go to it, by its API, once."""
    run_id, port = new_run(store), free_port(5123)
    away = MlflowResource(tracking_uri=f"http://127.0.0.1:{port}", retries=0)
    with away.loop(run_id, every=0.05) as log:
        for step in range(1200):
            log(step, loss=step / 2)
        time.sleep(0.2)
    assert "did not answer" in " ".join(deliver_left(away).waiting.values())
    argv, env = server_command(port)
    server = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: healthy(port), 120)
        (path,) = spool.directory().glob("*.points")
        assert delivery.deliver(away, path) == 1200
        spool.note_delivered(path, 0)
        assert deliver_left(away).points == 1200
        assert history(store, run_id, "loss") == [(step, step / 2) for step in range(1200)]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_threads_and_processes_may_log_to_one_spool(store: MlflowResource) -> None:
    run_id = new_run(store)
    with store.loop(run_id, every=0.01) as log, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: log(step, loss=step), range(2000)))
        with Spool(log.path) as other:
            other.log(2000, {"loss": 2000})
    assert sorted(history(store, run_id, "loss")) == [(step, float(step)) for step in range(2001)]


def test_two_who_deliver_take_turns(store: MlflowResource) -> None:
    run_id = new_run(store)
    for _ in range(8):
        with Spool(spool.new_path(run_id)) as writer:
            for step in range(300):
                writer.log(step, {"loss": float(threading.get_ident())})
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: deliver_left(store), range(4)))
    assert sum(one.points for one in told) == 8 * 300


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("a\tb", 1, 0),
        ("/a", 1, 0),
        ("a/../b", 1, 0),
        ("", 1, 0),
        ("a", "x", 0),
        ("a", None, 0),
        ("a", 1, 0.5),
        ("a", 1, 2**64),
    ],
)
def test_what_is_no_point_is_refused_where_it_is_logged(tmp_path: Path, name: str, value: object, step: object) -> None:
    """At once, by name, with nothing of the call written."""
    with Spool(tmp_path / "x.points") as writer, pytest.raises(BadPointError, match="cannot be logged"):
        writer.log(step, {"good": 1.0, name: value})  # type: ignore[arg-type, dict-item]
    assert (tmp_path / "x.points").read_bytes() == b""


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63) + 1, 2**63 - 1), st.from_regex(r"[a-z][\w. :\-]{0,20}", fullmatch=True), st.floats()
        )
    ),
    st.integers(1, 5),
)
def test_what_is_read_is_what_was_logged(tmp_path_factory: pytest.TempPathFactory, logged: list, at_once: int) -> None:
    """Any step, name and float, in parts of any size."""
    path = tmp_path_factory.mktemp("spool") / "x.points"
    with Spool(path) as writer, pytest.MonkeyPatch.context() as patched:
        patched.setattr(spool, "POINTS_AT_ONCE", at_once)
        for step, name, value in logged:
            writer.log(step, {name: value})
        parts = list(spool.points(path, 0))
        assert all(bad == 0 and len(points) <= at_once for points, _, bad in parts)
        read = [point for points, _, _ in parts for point in points]
        assert repr([(point.step, point.name, point.value) for point in read]) == repr(logged)
        assert [offset for _, offset, _ in parts][-1:] == [path.stat().st_size][: len(parts)]
