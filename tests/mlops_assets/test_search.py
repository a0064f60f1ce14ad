"""A search is made of its seed and its number of workers: whoever is faster, dies or is broken off."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_assets.metrics import METRICS, Metric
from mlops_assets.search import Asked, Found, Judged, There, Watch, best_trial, journalled, tried
from mlops_assets.search.over_processes import WORKER
from mlops_assets.search.study import WARM_UP
from resources.compute import NoWorkerError, WorkerLostError, WorkFailedError

pytestmark = pytest.mark.slow

HERE = "test_search:trial"
SPACE = {
    "rate": {"kind": "float", "low": 1e-3, "high": 1.0, "log": True},
    "depth": {"kind": "int", "low": 2, "high": 12, "log": False},
    "kind": {"kind": "choice", "choices": ["a", "b"]},
}
ROUNDS = 30
TIMES = ("started_at", "seconds")


def searching(**changes: Any) -> dict[str, Any]:
    """The search of a training, as its arguments write it."""
    return {"trials": 24, "seed": 3, "space": SPACE, "workers": 1, "prune": None, "over": "auto", **changes}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker imports what its driver does: also this file."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


# -- what is tried: a curve that each set of parameters learns along, at its own pace


def reached(params: Mapping[str, Any], at: int) -> float:
    """What these parameters have come to after a round, at most 1."""
    best = (
        1 - (math.log10(params["rate"]) + 1.2) ** 2 / 8 - abs(params["depth"] - 7) / 20 - 0.05 * (params["kind"] == "b")
    )
    return best * (1 - math.exp(-(at + 1) * (0.03 + params["rate"] / 4)))


def judged(asked: Asked, watch: Watch | None, naps: Mapping[str, float] | None = None) -> Judged:
    for at in range(ROUNDS):
        time.sleep((naps or {}).get(str(asked.number % 3), 0) / ROUNDS)
        if watch:
            watch(at, -reached(asked.params, at), False)
    return Judged(asked.params, {"rounds": ROUNDS}, {"roc_auc": reached(asked.params, ROUNDS - 1)})


def trial(given: Mapping[str, Any]) -> dict[str, Any]:
    """One trial in a worker, which may be told to die or to fail at one of them."""
    arguments, asked = given["arguments"], Asked(**given["trial"])
    if asked.number == arguments.get("fails"):
        raise ArithmeticError("no such depth")
    if asked.number == arguments.get("dies"):
        marks = Path(arguments["marks"])
        marks.write_text(f"{marks.read_text() if marks.exists() else ''}x")
        if len(marks.read_text()) <= arguments["times"]:
            os.kill(os.getpid(), signal.SIGKILL)
    logging.getLogger("mlops_assets.toy").info("tried by %s of %s threads", os.getpid(), os.environ["OMP_NUM_THREADS"])
    with Path(arguments["journal"]).with_suffix(".begun").open("a") as file:
        file.write(f"{asked.number}\n")

    def judge(asked: Asked, watch: Watch | None) -> Judged:
        return judged(asked, watch, arguments.get("naps"))

    return tried(asked, arguments["search"], METRICS["roc_auc"], judge, Path(arguments["journal"]))


def searched(search: dict[str, Any], journal: Path, **told: Any) -> Found:
    arguments = {"search": search, "journal": str(journal), **told}
    return best_trial(search, METRICS["roc_auc"], judged, There(HERE, arguments), journal)


def lines(journal: Path) -> list[dict[str, Any]]:
    """What a search tried, without its times."""
    return [{name: line[name] for name in line if name not in TIMES} for line in journalled(journal)]


def begun(journal: Path) -> list[int]:
    """The numbers that workers began with, each time that they did."""
    return sorted(map(int, journal.with_suffix(".begun").read_text().split()))


# -- one after the other


@pytest.mark.parametrize("prune", [None, "median", "hyperband"])
def test_one_after_the_other_it_is_optunas_own_search(prune: str | None, tmp_path: Path) -> None:
    """The same parameters, values and states, in the same order, and the same best, as `study.optimize` alone has."""
    import optuna

    found = searched(searching(prune=prune, trials=40), tmp_path / "trials.jsonl")
    peer = optunas_own(prune, 40)
    states = {"PRUNED": optuna.trial.TrialState.PRUNED, "COMPLETE": optuna.trial.TrialState.COMPLETE}
    assert [(line["params"], states[line["state"]]) for line in lines(tmp_path / "trials.jsonl")] == [
        (one.params, one.state) for one in peer.trials
    ]
    assert (found.best.params, found.best.metrics["roc_auc"]) == (peer.best_params, peer.best_value)
    pruned = sum(one.state == states["PRUNED"] for one in peer.trials)
    assert found.document["pruned"] == pruned and (pruned > 3) == (prune is not None)


def optunas_own(prune: str | None, trials: int) -> Any:
    import optuna

    pruners = {
        None: optuna.pruners.NopPruner(),
        "median": optuna.pruners.MedianPruner(n_warmup_steps=WARM_UP),
        "hyperband": optuna.pruners.HyperbandPruner(),
    }

    def objective(trial: Any) -> float:
        rate, depth = trial.suggest_float("rate", 1e-3, 1.0, log=True), trial.suggest_int("depth", 2, 12)
        params = {"rate": rate, "depth": depth, "kind": trial.suggest_categorical("kind", ["a", "b"])}
        for at in range(ROUNDS):
            trial.report(reached(params, at), at)
            if trial.should_prune():
                raise optuna.TrialPruned
        return reached(params, ROUNDS - 1)

    sampler = optuna.samplers.TPESampler(seed=3)
    study = optuna.create_study(sampler=sampler, pruner=pruners[prune], direction="maximize", study_name="search")
    study.optimize(objective, n_trials=trials)
    return study


def test_the_lower_the_better_is_searched_the_other_way_round(tmp_path: Path) -> None:
    """Scores that the trainer counts the other way than the metric are turned, so that the bad ones are pruned."""
    told = []
    for name in ("roc_auc", "log_loss"):
        metric, journal = METRICS[name], tmp_path / f"{name}.jsonl"

        def judge(asked: Asked, watch: Watch | None, metric: Metric = metric) -> Judged:
            one = judged(asked, watch)
            return Judged(
                one.params, {}, {metric.name: one.metrics["roc_auc"] * (1 if metric.higher_is_better else -1)}
            )

        found = best_trial(searching(prune="median"), metric, judge, There(HERE, {}), journal)
        told.append((found.best.params, [line["state"] for line in lines(journal)]))
    assert told[0] == told[1] and "PRUNED" in told[0][1]


def test_what_was_given_up_is_on_record_and_never_the_best(tmp_path: Path) -> None:
    """A pruned trial has no value, but the round that it came to and the scores that it is to be judged by."""
    found = searched(searching(prune="median"), tmp_path / "trials.jsonl")
    pruned = [line for line in lines(tmp_path / "trials.jsonl") if line["state"] == "PRUNED"]
    assert pruned and found.document["pruned"] == len(pruned)
    for line in pruned:
        assert line["value"] is None and "learned" not in line
        assert WARM_UP <= line["pruned_at"] == line["scores"][-1][0] < ROUNDS
    assert found.best.params not in [line["params"] for line in pruned]


# -- several workers


@pytest.mark.parametrize("prune", [None, "median", "hyperband"])
def test_who_is_faster_changes_nothing(prune: str | None, tmp_path: Path) -> None:
    """Whichever trials take long: the same are drawn, given up and found best; each is tried once."""
    search = searching(workers=2, prune=prune, trials=16)
    naps = [{"0": 0.2}, {"1": 0.15, "2": 0.05}]
    found = [searched(search, tmp_path / f"{at}.jsonl", naps=nap) for at, nap in enumerate(naps)]
    one, other = (lines(tmp_path / f"{at}.jsonl") for at in range(2))
    assert one == other and found[0].best == found[1].best
    assert [line["number"] for line in one] == begun(tmp_path / "0.jsonl") == list(range(16))
    order = [json.loads(line)["number"] for line in (tmp_path / "0.jsonl").read_text().splitlines()]
    assert order != sorted(order)  # they did end in another order than they were drawn in


def test_workers_share_the_threads_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two processes with half of the threads each; what they log is told by trial, and what was gained by them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with caplog.at_level(logging.INFO, logger="mlops_assets"):
        found = searched(searching(workers=2, trials=12), tmp_path / "trials.jsonl", naps=dict.fromkeys("012", 1.5))
    told = [line.rsplit("by ", 1)[1].split() for line in caplog.messages if "tried by" in line]
    assert len(told) == 12 and len({line[0] for line in told}) == 2 and {line[2] for line in told} == {"2"}
    assert (
        "trial 11: tried by" in caplog.text and "12 trials (0 given up, 0 known before) over 2 workers" in caplog.text
    )
    document, lasted = found.document, [line["seconds"] for line in journalled(tmp_path / "trials.jsonl")]
    assert document["trial_seconds"] == pytest.approx(sum(lasted)) and min(lasted) > 1.5
    assert document["speed_up"] == document["trial_seconds"] / document["seconds"]
    assert at_once(journalled(tmp_path / "trials.jsonl")) == 2 and not workers()


def at_once(tried: list[dict[str, Any]]) -> int:
    """How many trials ran at the same time, at most."""
    spans = [(datetime.fromisoformat(line["started_at"]).timestamp(), line["seconds"]) for line in tried]
    return max(sum(one <= start < one + seconds for one, seconds in spans) for start, _ in spans)


def test_a_worker_that_dies_is_replaced_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By SIGKILL, in a trial: told in the log with its cause; the search is as if nothing had been."""
    whole = searched(searching(workers=2, trials=8), tmp_path / "whole.jsonl")
    told = {"dies": 3, "times": 1, "marks": str(tmp_path / "marks")}
    found = searched(searching(workers=2, trials=8), tmp_path / "trials.jsonl", **told)
    assert found.best == whole.best and lines(tmp_path / "trials.jsonl") == lines(tmp_path / "whole.jsonl")
    (warning,) = [line for line in caplog.messages if "is run again" in line]
    assert warning.startswith("trial 3 ") and "SIGKILL" in warning


def test_a_trial_that_kills_its_workers_ends_the_search(tmp_path: Path) -> None:
    """The second time; it is on record as failed, with the others that ended, and no process is left."""
    told = {"dies": 3, "times": 9, "marks": str(tmp_path / "marks")}
    with pytest.raises(WorkerLostError, match=r"test_search:trial was killed by SIGKILL"):
        searched(searching(workers=2, trials=8), tmp_path / "trials.jsonl", **told)
    assert (tmp_path / "marks").read_text() == "xx"
    states = {line["number"]: line["state"] for line in lines(tmp_path / "trials.jsonl")}
    assert states[3] == "FAIL" and {states[number] for number in (0, 1, 2)} == {"COMPLETE"} and not workers()


def test_a_trial_that_fails_ends_the_search_with_its_error(tmp_path: Path) -> None:
    """With the parameters that did it and the lines of code where it happened; gone on with, the rest is tried."""
    with pytest.raises(WorkFailedError, match=r"ArithmeticError: no such depth") as problem:
        searched(searching(workers=2, trials=8), tmp_path / "trials.jsonl", fails=2)
    assert "trial 2, {'rate'" in str(problem.value) and "in trial" in str(problem.value) and not workers()
    assert [line["state"] for line in lines(tmp_path / "trials.jsonl") if line["number"] == 2] == ["FAIL"]
    searched(searching(workers=2, trials=8), tmp_path / "trials.jsonl")
    searched(searching(workers=2, trials=8), tmp_path / "whole.jsonl")
    assert lines(tmp_path / "trials.jsonl") == lines(tmp_path / "whole.jsonl")


def test_over_ray_without_ray_is_refused_before_a_trial(tmp_path: Path) -> None:
    with pytest.raises(NoWorkerError, match='compute="ray"'):
        searched(searching(workers=2, over="ray"), tmp_path / "trials.jsonl")
    assert not lines(tmp_path / "trials.jsonl")


def test_one_trial_asks_for_no_worker(tmp_path: Path) -> None:
    """Without a space, or with one trial, there is nothing to share, and the trainer's own parameters are judged."""
    for search in (searching(workers=2, trials=1), searching(workers=2, space={})):
        asked: list[Asked] = []

        def judge(one: Asked, _: Watch | None, asked: list[Asked] = asked) -> Judged:
            asked.append(one)
            return Judged(one.params, {}, {"roc_auc": 0.5})

        there = There("nowhere:at_all", {})
        found = best_trial(search, METRICS["roc_auc"], judge, there, tmp_path / f"{search['trials']}.jsonl")
        assert found.document["trials"] == 1 and asked == [Asked(0, {}, 0)]


def test_who_is_interrupted_leaves_no_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By a Ctrl-C, which a terminal sends to the workers too: they end in silence, with the one who asked."""
    journal = tmp_path / "trials.jsonl"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(search=searching(workers=2), journal=str(journal), naps={"0": 9.0})],
        start_new_session=True,
    )
    wait_for(lambda: len(workers()) == 2 and journal.with_suffix(".begun").exists())
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(150) != 0 and not workers()
    told = capfd.readouterr().err
    assert told.count("KeyboardInterrupt") == 1


# -- broken off

DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_search
test_search.searched({{search!r}}, Path({{journal!r}}), naps={{naps!r}})
"""


@pytest.mark.parametrize("prune", [None, "median"])
def test_a_killed_search_goes_on_to_the_same_end(prune: str | None, tmp_path: Path) -> None:
    """By SIGKILL, with trials running: its workers end with it, what ended is not run again, nothing is doubled."""
    journal, whole = tmp_path / "trials.jsonl", tmp_path / "whole.jsonl"
    search, naps = searching(workers=2, trials=14, prune=prune), {"0": 0.4, "1": 0.2}
    code = DRIVER.format(search=search, journal=str(journal), naps=naps)
    driver = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(journalled(journal)) >= 5)
    driver.kill()
    driver.wait()
    wait_for(lambda: not workers())
    kept = [line["number"] for line in journalled(journal)]
    before = begun(journal)
    assert 5 <= len(kept) < 14 and len(before) > len(kept)
    found = searched(search, journal)
    assert searched(search, whole).best == found.best and lines(journal) == lines(whole)
    again = [number for number in range(14) if begun(journal).count(number) > 1]
    assert again == sorted(set(before) - set(kept)) and found.document["before"] == len(kept)


def wait_for(what: Any, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def workers() -> list[int]:
    """The processes that try for a search of these tests."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = process.info["cmdline"] or []
        if WORKER in command and HERE in command and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def test_what_was_drawn_otherwise_is_tried_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journal whose third trial is not what is drawn now (another Optuna, say) is gone on with from there."""
    journal = tmp_path / "trials.jsonl"
    searched(searching(trials=6), journal)
    whole = lines(journal)
    spoilt = journalled(journal)
    spoilt[2]["params"]["depth"] = 99
    journal.write_text("".join(json.dumps(line) + "\n" for line in spoilt))
    assert searched(searching(trials=6), journal).document["trials"] == 6
    assert lines(journal) == whole and "trial 2 was of" in caplog.text


# -- over Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two cores on this machine, which may take its time to start on a busy one."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    import ray

    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield ray
    ray.shutdown()


def test_over_ray_it_is_the_same_search(ray: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over processes, over tasks, and over tasks of a task that holds every core; a worker that dies is replaced."""
    search = searching(workers=2, trials=10, prune="median")
    local = searched(search | {"over": "processes"}, tmp_path / "processes.jsonl")
    told = {"dies": 3, "times": 1, "marks": str(tmp_path / "marks")}
    over = searched(search, tmp_path / "ray.jsonl", **told)
    (warning,) = [line for line in caplog.messages if "is run again" in line]
    assert warning.startswith("trial 3 ") and "Ray" in warning
    within = ray.get(ray.remote(num_cpus=2)(lambda: searched(search, tmp_path / "within.jsonl")).remote())
    assert local.best == over.best == within.best
    assert lines(tmp_path / "processes.jsonl") == lines(tmp_path / "ray.jsonl") == lines(tmp_path / "within.jsonl")
    assert not workers()
