"""The serving benchmark at toy size: its servers answer as the model does, wrk's word is read, failures are noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import batches, contenders, serving, wrk
from benchmarks.contenders import ServerFailedError
from benchmarks.harness import UnequalResultsError
from benchmarks.served_model import Bundle, bundle, features
from benchmarks.wrk import FailedRequestsError

needs_wrk = pytest.mark.skipif(not wrk.available(), reason="wrk is not on the PATH")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("model") / "bundle", trees=5)


@needs_wrk
def test_ours_and_a_peer_are_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that bring features, rows by keys, batches, a cold start: every figure is there, nothing is left at home."""
    monkeypatch.setattr(serving, "CLIENTS", (2,))
    monkeypatch.setattr(serving, "TARGET_CLIENTS", 2)
    monkeypatch.setattr(serving, "peers", lambda model, *_: [contenders.fastapi(model.native)])
    monkeypatch.setattr(contenders, "installed_mlserver", lambda _: "it is not asked for here")
    measured = serving.measure(rounds=1, span=1, batch_rounds=1)
    names = {"fastapi", "looking_up", "p99"}
    assert {figure.name for figure in measured.figures} == {
        *(f"serving.2_clients.{name}" for name in names),
        *(f"serving.batch_1000.{name}" for name in batches.FORMATS),
        "serving.cold_start",
    }
    assert all(figure.ours > 0 and figure.peer > 0 and figure.target for figure in measured.figures)
    assert measured.details[-1] == "MLServer was not measured: it is not asked for here."
    assert not home.exists()


def test_without_wrk_nothing_is_measured_and_said_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    measured = serving.measure()
    assert (measured.figures, measured.details) == ([], [wrk.MISSING])


def test_a_server_with_other_answers_is_not_measured(model: Bundle, tmp_path: Path) -> None:
    rows = features(3).rows()
    right = serving.own_predictions(model, features(3).to_numpy())
    with contenders.started([contenders.fastapi(model.native)], rows, tmp_path) as (server,):
        serving.require_right(server, right)
        with pytest.raises(UnequalResultsError, match="bare FastAPI"):
            serving.require_right(server, [*right[:2], right[2] + 0.001])


@needs_wrk
def test_a_server_that_refuses_is_not_measured(model: Bundle, tmp_path: Path) -> None:
    """wrk counts what is not 2xx."""
    with contenders.started([contenders.fastapi(model.native)], features(1).rows(), tmp_path) as (server,):
        refused = wrk.Bodies.written(tmp_path / "wrong", [b'{"f0": "no number"}'])
        assert serving.seen(server, server.bodies(tmp_path), 2, 1).load.failed == 0
        with pytest.raises(FailedRequestsError, match=r"bare FastAPI refused [1-9]"):
            serving.seen(server, refused, 2, 1)


def test_a_server_that_does_not_start_is_named_with_what_it_said(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailedError, match=r"(?s)bare FastAPI does not answer.*none\.ubj"),
        contenders.started([contenders.fastapi(tmp_path / "none.ubj")], features(1).rows(), tmp_path),
    ):
        pass
