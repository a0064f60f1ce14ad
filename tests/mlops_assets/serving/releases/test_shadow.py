"""A shadow is told what others are asked, and whatever becomes of it, nobody can tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
import pytest

from mlops_assets.serving import metrics
from mlops_assets.serving.answers import FrameInputs, Question, RowInputs
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.releases import shadow
from mlops_assets.serving.releases.shadow import QUEUE_QUESTIONS, QUEUE_ROWS, Shadow
from mlops_assets.serving.releases.told import Told, UnanswerableError
from resources.online.packed_store import PackedStore, online_store_url
from resources.releases import Variant

if TYPE_CHECKING:
    from conftest import Platform

MODEL = "flights/late_arrival"
WHO = {"by": "ada", "why": "a test"}
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
NAN = float("nan")
VARIANT = Variant("m:2", "2", 0, "shadow")


def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle(2)


@pytest.fixture
def start(home: Path) -> Iterator[Callable[[Path], Shadow]]:
    """A shadow of a bundle, ended with the test."""
    started: list[Shadow] = []

    def make(bundle: Path) -> Shadow:
        started.append(Shadow(MODEL, VARIANT, bundle))
        return started[-1]

    yield make
    for one in started:
        one.close()


def given(ids: Sequence[str], rows: Sequence[Sequence[Any]]) -> Question:
    return Question(NOON, ids, {"origin": ["EWR"] * len(ids)}, None, RowInputs(rows))


def answers(*, shadow: bool = True) -> pl.DataFrame:
    return PredictionLog().read(MODEL, NOON.date(), shadow=shadow)


def by_id() -> dict[str, float]:
    """The shadow's predictions in the log."""
    frame = answers()
    return dict(zip(frame["request_id"], frame["prediction"], strict=True)) if frame.height else {}


def dropped() -> float:
    return metrics.SHADOW_DROPPED.labels(MODEL, VARIANT.release)._value.get()


def test_what_it_is_told_it_answers_into_the_log(start: Callable[[Path], Shadow], bundle: Path) -> None:
    """As its release would, under the same request ids and its own name; where nobody reads it by mistake."""
    release = Release.load(bundle)
    rows = release.golden.rows
    one = start(bundle)
    one.tell(given(["a"], rows[:1]), release.plan.inputs)
    frame = pl.DataFrame(rows[1:], schema=list(release.plan.inputs), orient="row")
    ids = [f"b{place}" for place in range(frame.height)]
    one.tell(Question(NOON, ids, {}, None, FrameInputs(frame)), release.plan.inputs)
    eventually(lambda: len(by_id()) == len(rows))
    expected = dict(zip(["a", *ids], release.golden.predictions, strict=True))
    assert by_id() == pytest.approx(expected, abs=1e-6)
    said = answers()
    assert set(said["variant"]) == {"shadow"} and set(said["release"]) == {"m:2"}
    assert answers(shadow=False).is_empty()


def test_it_looks_up_for_itself(start: Callable[[Path], Shadow], bundle: Path) -> None:
    """Questions by key are answered with what its own plan reads, at the moment asked about."""
    store = PackedStore.open(online_store_url())
    store.write("flights__weather", [(("EWR",), microseconds(NOON), {"temp": 50.0})])
    asked = {"origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "AA", "seats": 100, "holiday": False}
    start(bundle).tell(Question(NOON, ["a"], {"origin": ["EWR"], "dest": ["BOS"]}, [asked]))
    eventually(lambda: answers().height == 1)
    release = Release.load(bundle)
    expected = release.predict([[200.0, "AA", 100, False, 50.0, None]])[0]
    assert by_id() == {"a": pytest.approx(expected, abs=1e-6)}


def test_a_shadow_that_hangs_costs_nothing(start: Callable[[Path], Shadow], bundle: Path) -> None:
    """It reads no more: telling it takes no longer, its queue is bounded, the rest is counted, and it can be ended."""
    one = start(bundle)
    eventually(lambda: one.pid)
    rows = Release.load(bundle).golden.rows
    one.tell(given(["first"], rows[:1]))
    eventually(lambda: answers().height == 1)
    os.kill(one.pid or 0, signal.SIGSTOP)
    before, question = dropped(), given([str(number) for number in range(10)], rows[:10])
    took = []
    for _ in range(3 * QUEUE_ROWS // 10):
        began = time.perf_counter()
        one.tell(question)
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 1e-3  # whoever waited for it would never come back, it is stopped
    assert one._rows <= QUEUE_ROWS and len(one._queue) <= QUEUE_QUESTIONS
    eventually(lambda: dropped() - before > QUEUE_ROWS)
    began = time.monotonic()
    one.close()
    assert time.monotonic() - began < 6


def test_one_that_dies_is_started_again_and_then_given_up(
    start: Callable[[Path], Shadow], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times, with pauses; then its failure says so and what it is told is counted as dropped."""
    monkeypatch.setattr(shadow, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(shadow, "RESTARTS", 1)
    one = start(bundle)
    rows = Release.load(bundle).golden.rows
    one.tell(given(["first"], rows[:1]))
    eventually(lambda: answers().height == 1)
    killed = one.pid or 0
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: one.pid not in (None, killed))
    one.tell(given(["second"], rows[:1]))
    eventually(lambda: answers().height == 2)
    os.kill(one.pid or 0, signal.SIGKILL)
    eventually(lambda: one.failure)
    assert one.failure == "its process ended 2 times (exit code -9)"
    before = dropped()
    one.tell(given(["third"], rows[:1]))
    eventually(lambda: dropped() == before + 1)


def test_questions_that_it_cannot_answer_are_passed_over(start: Callable[[Path], Shadow], bundle: Path) -> None:
    """Rows of another release's inputs; the next are answered, in whatever order the inputs come."""
    release = Release.load(bundle)
    names, rows = list(release.plan.inputs), release.golden.rows
    one = start(bundle)
    one.tell(given(["lacking"], [row[1:] for row in rows[:1]]), names[1:])
    one.tell(given(["reversed"], [row[::-1] for row in rows[:1]]), names[::-1])
    eventually(lambda: answers().height == 1)
    assert by_id() == {"reversed": pytest.approx(release.golden.predictions[0], abs=1e-6)}


def test_it_ends_with_the_process_that_it_belongs_to(bundle: Path, home: Path) -> None:
    """Also when that one is killed: its input ends. A signal to the whole group is not for it: its log is written."""
    program = f"""
import os, time
from pathlib import Path
from mlops_assets.serving.releases.shadow import Shadow
from resources.releases import Variant
one = Shadow({MODEL!r}, Variant("m:2", "2", 0, "shadow"), Path({str(bundle)!r}))
while one.pid is None:
    time.sleep(0.01)
print(one.pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert owner.stdout
    child = psutil.Process(int(owner.stdout.readline()))
    eventually(lambda: child.nice() == 19)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert child.is_running()
    owner.kill()
    owner.wait()
    child.wait(timeout=20)


def test_a_record_names_its_shadow(platform: Platform) -> None:
    """It comes and goes with the record, beside whatever has the traffic, and is in what the process says of itself."""
    platform.release(1)
    follower = platform.follow()
    platform.records.shadow(MODEL, platform.bento(2), "2", **WHO)
    platform.eventually(lambda: platform.state(follower).shadow)
    first = platform.state(follower).shadow
    platform.eventually(lambda: first.pid)
    assert platform.versions(follower) == {"1": 100}
    assert [one["role"] for one in platform.state(follower).status()["serving"]] == ["champion", "shadow"]
    platform.release(3, steps=(50, 100))
    platform.eventually(lambda: platform.versions(follower) == {"1": 50, "3": 50})
    assert platform.state(follower).shadow is first, "another change started it anew"
    platform.records.unshadow(MODEL, **WHO)
    platform.eventually(lambda: platform.state(follower).shadow is None)
    platform.eventually(lambda: first.pid is None)


def test_a_shadow_that_does_not_prove_itself_leaves_the_record(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any release that fails its golden rows, with the reason in the history; the traffic is as it was."""
    monkeypatch.setattr(shadow, "PAUSE_SECONDS", 0.01)
    platform.release(1)
    follower = platform.follow()
    platform.records.shadow(MODEL, platform.bento(2, golden_shift=0.1), "2", **WHO)
    platform.eventually(lambda: platform.records.read(MODEL).revision == 3, seconds=60)
    record = platform.records.read(MODEL)
    assert (record.shadow, record.change.action) == (None, "refused")
    assert "GoldenMismatchError" in record.why
    assert platform.versions(follower) == {"1": 100}


@pytest.mark.parametrize("rows", [[[1.0, "AA", None]], [[NAN, "ü\n", 3]]])
def test_a_question_survives_the_pipe(rows: list[list[Any]]) -> None:
    """Every part of it; a NaN is a missing value, as it is to the model."""
    read, write = os.pipe()
    asked = [{"origin": "EWR"}]
    told = [
        Told(Question(NOON, ["a"], {"origin": ["EWR"]}, None, RowInputs(rows)), ["x", "y", "z"]),
        Told(Question(NOON, ["b"], {}, asked, None), []),
        Told(Question(NOON, ["c"], {}, None, FrameInputs(pl.DataFrame({"x": [1.0]}))), ["x"]),
    ]
    os.write(write, b"".join(one.to_bytes() for one in told))
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        first, second, third = Told.read_all(stream)
    assert first.question.given.rows() == [[None if value is NAN else value for value in rows[0]]]
    assert (first.question.at, first.question.ids, first.names) == (NOON, ["a"], ["x", "y", "z"])
    assert (second.question.asked, second.question.given) == (asked, None)
    assert third.question.given.rows() == [(1.0,)]
    with pytest.raises(UnanswerableError, match="q is not among them"):
        first.asked_of(["x", "q"])
