"""The `mlops` command over real stores: it tells what happened, moves what it is asked to, and says what to do next."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from mlops_assets.catalog import gather
from mlops_assets.cli import _user, app, main
from mlops_assets.links.spec import link_key
from resources.environment import PROJECT, prepare_home
from resources.mlflow import MlflowResource, MlflowUnreachableError
from resources.releases import Limits
from resources.serving_status import StatusFile

MODEL = "flights/late_arrival"


@pytest.fixture(autouse=True)
def dagster_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set it; this restores it after each test."""
    monkeypatch.setenv("DAGSTER_HOME", "")


def mlops(*words: str) -> Result:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def mlops_process(*words: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user types it, without what a test's own process has set up."""
    env = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    command = [str(Path(sys.executable).with_name("mlops")), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `main` prints for an error that a user can mend: one line, and exit status 1."""
    monkeypatch.setattr(sys, "argv", ["mlops", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("mlops: ")
    return printed.err


def row(output: str, *cells: str) -> bool:
    """One line of a table holds all of these."""
    return any(all(cell in line for cell in cells) for line in output.splitlines())


def test_help_names_every_command():
    """Each with what it does, and the two that write files under `new`."""
    shown, written = mlops("--help").output, mlops("new", "--help").output
    commands = ("demo", "up", "promote", "rollback", "traffic", "history", "runs", "features", "lineage", "new")
    assert [name for name in commands if f" {name} " not in shown] == []
    assert " model " in written and " features " in written


def test_promote_and_rollback_move_the_traffic_and_say_so(registered):
    """By the person who typed it, for the reason given; forward again by the version's number."""
    assert "champion flights_late_arrival:" in mlops("promote", MODEL, "--version", "1").output
    assert "(version 2) gets 100 %" in mlops("promote", MODEL, "--version", "2", "--why", "sharper").output
    assert registered.alias == "2"
    assert "(version 1) gets 100 %" in mlops("rollback", MODEL, "--why", "slower").output
    assert registered.alias == "1"
    mlops("promote", MODEL, "--version", "2", "--why", "forward again")
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


def test_dagster_shows_the_traffic_as_a_command_left_it(registered):
    """The endpoint's page would else show what its last run began: a canary that is long over."""
    for words in (["promote", MODEL, "--version", "1"], ["promote", MODEL, "--version", "2"], ["rollback", MODEL]):
        mlops(*words)
    key = link_key(registered.model, "endpoint")
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(key)
    assert event is not None and event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    assert "| champion |" in str(shown["traffic"].value) and "| 1 | 100 |" in str(shown["traffic"].value)
    assert shown["why"].value == "rolled back by hand"


def test_a_rollback_needs_no_dagster(registered, home):
    """It is there for the worst hour: the traffic moves, and what could not be told is said."""
    mlops("promote", MODEL, "--version", "1")
    mlops("promote", MODEL, "--version", "2")
    shutil.rmtree(home / "dagster")
    (home / "dagster").touch()
    shown = mlops("rollback", MODEL)
    assert "(version 1) gets 100 %" in shown.output and "Dagster could not be told" in shown.output
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


def test_history_tells_every_move_in_order(registered):
    """Champion and traffic in one table: when, who, what, from, to, why."""
    mlops("promote", MODEL, "--version", "1", "--why", "the first")
    mlops("promote", MODEL, "--version", "2", "--why", "sharper")
    mlops("rollback", MODEL, "--why", "slower")
    shown = mlops("history", MODEL).output
    user = getpass.getuser()
    assert row(shown, user, "release", "none", "version 1 100 %", "the first")
    assert row(shown, user, "promote", "version 1 100 %", "version 2 100 %", "sharper")
    assert row(shown, user, "rollback", "version 2 100 %", "version 1 100 %", "slower")
    assert row(shown, user, "champion", "version 2", "version 1", "slower")
    assert shown.index("the first") < shown.index("sharper") < shown.index("slower")


def test_traffic_is_moved_and_told_with_who_since_when_and_why(registered):
    """A split, a shadow, and their ends; each with its own reason, by the person who typed it."""
    mlops("promote", MODEL, "--version", "1", "--why", "the first")
    moved = mlops("traffic", MODEL, "--challenger", "2=20", "--why", "is it better?").output
    assert "champion" in moved and "(version 1) gets 80 %" in moved and "(version 2) gets 20 %" in moved
    assert "(version 3) is asked too, unheard" in mlops("traffic", MODEL, "--shadow", "3", "--why", "curious").output
    shown, user = mlops("traffic", MODEL).output, getpass.getuser()
    assert "revision 3" in shown and "An A/B split" in shown and "rollback leads to the champion alone" in shown
    assert row(shown, "champion", " 1 ", " 80 ", user, "is it better?")
    assert row(shown, "challenger", " 2 ", " 20 ", user, "is it better?")
    assert row(shown, "shadow", " 3 ", " 0 ", user, "curious")
    assert "No serving process reports" in shown
    told = mlops("traffic", MODEL, "--champion-only", "--no-shadow", "--why", "enough").output
    assert told.count("(version 1) gets 100 %") == 2
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")
    history = mlops("history", MODEL).output
    assert row(history, user, "split", "version 1 100 %", "version 1 80 %, version 2 20 %", "is it better?")
    assert row(history, user, "no shadow", "version 3 as shadow", "version 1 100 %", "enough")


def test_traffic_tells_of_a_canary_its_steps_and_bounds(registered):
    """And what every process that serves makes of it: one that is behind, and why one refuses a release."""
    releases = registered.promotion.releases
    for version in ("1", "2"):
        tag = registered.promotion.bento_of(registered.model, version)
        releases.start_canary(MODEL, tag, version, [10, 100], by="x", why="y", limits=Limits(min_requests=7))
    behind = {"role": "champion", "release": tag, "version": "1", "weight": 100}
    status = StatusFile(releases.path(MODEL))
    status.write({"revision": 1, "serving": [behind], "refused": [{"release": tag, "reason": "no model file"}]})
    shown = mlops("traffic", MODEL).output
    assert "step 1 of 2 (10, 100 %)" in shown and "over 1.0% of its requests fail, or when, after 7," in shown
    assert row(shown, f"-{os.getpid()} ", "1, 2 is to come", "champion version 1 100 %", "no model file")
    releases.refuse(MODEL, 2, tag, by="serving pod-1", why="slow", action="circuit breaker")
    shown = mlops("traffic", MODEL).output
    assert "(version 2) was taken out by serving pod-1: slow" in shown and "no release before it" in shown


def test_the_traffic_is_told_while_mlflow_is_down(registered, home):
    """Who answers, and since when, is what is asked first when something is wrong."""
    mlops("promote", MODEL, "--version", "1")
    shutil.rmtree(home / "mlflow")
    (home / "mlflow").touch()
    assert row(mlops("traffic", MODEL).output, "champion", " 1 ", " 100 ")


def test_history_of_a_model_that_was_never_released_is_empty(home):
    assert "History of flights/arrival_delay" in mlops("history", "flights/arrival_delay").output


def test_runs_lists_every_candidate_with_its_verdict(registered):
    """Those that were refused too, with the reason; their cutoff, metric, Bento and MLflow run."""
    shown = mlops("runs", MODEL).output
    (run_id,) = [
        item.run_id for item in registered.promotion.mlflow.versions("flights.late_arrival") if item.version == "1"
    ]
    assert row(shown, "1", "2013-01-01", "0.7100", "passed", "flights_late_arrival:", run_id[:8])
    assert row(shown, "3", "2013-03-01", "0.7300", "refused", "clears_floor")
    assert "roc_auc" in shown


def test_lineage_leads_from_the_endpoint_to_the_raw_tables(home):
    """With what was published last of each, read from the instance that runs write to, whoever's shell this is."""
    model = gather().model(MODEL)
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        published = dg.AssetMaterialization(
            link_key(model, "candidate"), metadata={"version": "7"}, partition="2013-04-01"
        )
        instance.report_runless_asset_event(published)
    shown = mlops_process("lineage", MODEL)
    assert shown.returncode == 0, shown.stderr
    assert "flights/late_arrival/endpoint never materialized" in shown.stdout
    assert row(shown.stdout, "flights/late_arrival/candidate", "partition 2013-04-01", "version 7", "UTC")
    assert "flights/raw_weather" in shown.stdout


def test_a_command_in_a_pipe_prints_whole_lines(registered):
    """Not cut to the 80 columns that a terminal would have."""
    ran = mlops_process("runs", MODEL)
    assert ran.returncode == 0, ran.stderr
    assert row(ran.stdout, "3", "2013-03-01", "refused", "clears_floor: roc_auc 0.51")


# -- errors ----------------------------------------------------------------------------------------------


def test_a_misspelt_model_is_one_line_with_the_nearest_name(home):
    """Nothing on standard output, no traceback, exit status 1."""
    ran = mlops_process("promote", "flights/late_arival")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert "no model 'flights/late_arival'" in ran.stderr and "Did you mean 'flights/late_arrival'?" in ran.stderr


def test_an_unknown_view_is_one_line(home, monkeypatch, capsys):
    said = problem(monkeypatch, capsys, "features", "show", "flights/wether_hourly")
    assert "no feature view 'flights/wether_hourly'" in said and "Did you mean 'flights/weather_hourly'" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["promote", MODEL, "--version", "9"], "cannot promote version 9: it does not exist (promotable: "),
        (["promote", MODEL, "--version", "3"], "cannot promote version 3: it did not pass its gate (promotable: "),
        (
            ["traffic", MODEL, "--challenger", "3=20"],
            "cannot promote version 3: it did not pass its gate (promotable: ",
        ),
        (["traffic", MODEL, "--challenger", "2=20"], "has no release yet (known: none). Materialize"),
        (["traffic", MODEL, "--shadow", "9"], "has no version '9' (known: "),
        (["traffic", MODEL], "has no release yet (known: none). Materialize"),
        (["traffic", "flights/late_arival"], "Did you mean 'flights/late_arrival'"),
        (["promote", "flights/arrival_delay"], "no version passed its gate (promotable: none). Materialize"),
        (["rollback", MODEL], "has no release yet (known: none). Materialize 'flights/late_arrival/endpoint'"),
    ],
)
def test_what_cannot_be_moved_is_one_line_with_the_next_step(registered, monkeypatch, capsys, words, says):
    assert says in problem(monkeypatch, capsys, *words)
    assert (registered.traffic, registered.alias) == ({}, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--challenger", "3"], "is not VERSION=PERCENT"),
        (["--challenger", "3=x"], "is not VERSION=PERCENT"),
        (["--challenger", "2=20", "--champion-only"], "exclude each other"),
        (["--shadow", "2", "--no-shadow"], "exclude each other"),
    ],
)
def test_traffic_that_cannot_be_meant_moves_nothing(registered, words, says):
    mlops("promote", MODEL, "--version", "1")
    refused = CliRunner().invoke(app, ["traffic", MODEL, *words])
    assert refused.exit_code == 2 and says in " ".join(refused.output.split())
    assert registered.traffic == {"1": 100}


def test_a_rollback_with_nothing_before_is_one_line(registered, monkeypatch, capsys):
    mlops("promote", MODEL, "--version", "1")
    assert "has no previous release to return to" in problem(monkeypatch, capsys, "rollback", MODEL)
    assert registered.traffic == {"1": 100}


def test_a_broken_release_record_is_one_line_that_names_the_file(registered, home, monkeypatch, capsys):
    mlops("promote", MODEL, "--version", "1")
    (home / "releases" / f"{MODEL}.json").write_text('{"model": "fli')
    said = problem(monkeypatch, capsys, "rollback", MODEL)
    assert "late_arrival.json cannot be read" in said and "last line of its history" in said


def test_an_unknown_environment_is_one_line(home, monkeypatch, capsys):
    monkeypatch.setenv("MLOPS_ENV", "prod")
    said = problem(monkeypatch, capsys, "history", MODEL)
    assert "MLOPS_ENV is 'prod' (known: local, test, staging, production)" in said


def test_an_mlflow_that_does_not_answer_is_one_line(home, monkeypatch, capsys):
    """The error itself, after retries, is shown in the resource's own tests; here it is not waited for."""

    def unreachable(mlflow: MlflowResource, name: str, **_: object) -> None:
        raise MlflowUnreachableError.of("http://127.0.0.1:9", mlflow.retries)

    monkeypatch.setattr(MlflowResource, "versions", unreachable)
    assert "MLflow at http://127.0.0.1:9 did not answer" in problem(monkeypatch, capsys, "runs", MODEL)


def test_a_user_without_a_name_is_told_by_number(monkeypatch):
    """A pod may run as a user that its image does not know; the history still says who."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert _user() == f"uid {os.getuid()}"


def test_the_module_is_the_command():
    """`python -m mlops_assets.cli` is what the demo runs."""
    ran = subprocess.run(
        [sys.executable, "-m", "mlops_assets.cli"], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert "Usage" in ran.stdout + ran.stderr


def test_events_are_appended_all_or_none(home: Path) -> None:
    """A line that is no event is named, and the lines before it are not in the stream."""
    from resources.streams import open_stream

    weather = '{"origin": "JFK", "observed_at": "2013-07-19T00:00:00Z"}\n'
    for bad, said in (("not json\n", "line 2 is not JSON"), ("[1]\n", "line 2 is no JSON object")):
        refused = CliRunner().invoke(app, ["produce", "flights/raw_weather"], input=weather + bad)
        assert (refused.exit_code, said in refused.output) == (2, True), refused.output
    told = CliRunner().invoke(app, ["produce", "flights/raw_weather"], input=weather + "\n" + weather)
    assert told.output == "2 events appended\n"
    stream = open_stream("weather", "flights.raw_weather")
    assert len(stream.read(10, 0)) == 2
    stream.close()


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only errors of ours say what to do next; another one is not for the user to mend."""
    monkeypatch.setattr("mlops_assets.scaffold.write_model", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["mlops", "new", "model", "flights/x"])
    with pytest.raises(ZeroDivisionError):
        main()
