"""`mlops features` as people and CI run it: found, shown, followed, and refused where a model in use would break."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mlops_assets.catalog import gather
from mlops_assets.cli import app, main
from mlops_assets.discovery.card import features_read
from resources.environment import PROJECT

PACKAGES = ("feature_assets", "mlops_assets", "model_assets", "resources", "sensors")
CONTRACT = "deployment/feature_contract.json"
# What a developer may do to declarations in use: file, before, after.
BREAKING = (
    ("sources.py", '    "visib": Float64("Visibility", unit="mile", minimum=0, maximum=100),\n', ""),
    ("punctuality.py", "import Float64, feature_view", "import Float64, Int64, feature_view"),
    ("punctuality.py", '"carrier_flights_7d": Float64(', '"carrier_flights_7d": Int64('),
    ("congestion.py", "ttl=timedelta(hours=3)", "ttl=timedelta(hours=6)"),
    ("punctuality.py", "entities=[airport, destination]", "entities=[destination, airport]"),
)
ADDED = (("aircraft.py", '"aircraft_age":', '"aircraft_engines": Float64("Engines"),\n        "aircraft_age":'),)


def mlops(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["features", *words], catch_exceptions=False, env={"DAGSTER_HOME": ""})
    assert result.exit_code == code, result.output
    return result


def answer(*words: str) -> Any:
    return json.loads(mlops(*words, "--json").stdout)


def row(output: str, *cells: str) -> bool:
    """One line of a table holds all of these."""
    return any(all(cell in line for cell in cells) for line in output.splitlines())


def problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints for an error that a user can mend: one line, and exit status 1."""
    monkeypatch.setattr(sys, "argv", ["mlops", "features", *words])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 1 and printed.out == "" and printed.err.count("\n") == 1
    return printed.err


# -- what is declared


def test_without_a_command_all_views_are_listed_with_who_uses_them(home: Path):
    shown = mlops().output
    assert row(shown, "flights/weather_hourly", "origin", "3:00:00", "flights/late_arrival")
    every = [view.id for view in (*gather().views, *gather().on_demand.values())]
    assert [name for name in every if name not in shown] == []
    listed = json.loads(mlops("--json").stdout)
    assert listed.keys() == set(every) and "flights/late_arrival" in listed["flights/weather_hourly"]["used_by"]


def test_search_prints_the_best_first(home: Path):
    shown = mlops("search", "temprature").output
    assert row(shown, "flights/weather_hourly:temp", "Float64", "Air temperature [degF]", "team:flights")
    found = answer("search", "carrier delay")["found"]
    assert found[0]["id"] == "flights/carrier_punctuality:carrier_mean_delay_7d"
    assert found[0]["used_by"] and "words" not in found[0]


def test_a_search_in_vain_says_what_is_near(home: Path):
    """And is no failure: nothing went wrong."""
    assert row(mlops("search", "temperment").output, "Near: ", "temperature")
    assert "All views: mlops features" in mlops("search", "qqqq").output
    found = answer("search", "temperment")
    assert found["found"] == [] and "temperature" in found["near"]


def test_show_of_a_view_says_what_each_feature_means(home: Path):
    """In its unit, as declared, before anything was published."""
    shown = mlops("show", "flights/weather_hourly").output
    assert "one row per airport and hour" in shown and "keys: origin (String, airport); ttl: 3:00:00" in shown
    assert "offline: no event; never materialized" in shown and "statistics: none. Asset" in shown
    assert row(shown, "temp", "Float64", "degF", "Air temperature")


def test_show_of_a_view_on_demand_says_what_it_is_computed_from(home: Path):
    for view in gather().on_demand.values():
        assert f"computed when asked for, from: {', '.join(view.inputs)}" in mlops("show", view.id).output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["show", "flights/wether_hourly"], "Did you mean 'flights/weather_hourly'"),
        (["impact", "flights/wether_hourly:temp"], "Did you mean 'flights/weather_hourly'"),
        (["impact", "flights/weather_hourly:tmp"], "Did you mean 'temp'"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
):
    assert says in problem(monkeypatch, capsys, *words)


# -- over a platform with a champion that has all the traffic


def test_show_names_rows_bento_and_endpoint(module_platform: Any):
    shown = mlops("show", "flights/weather_hourly").output
    assert "newest event 2013-06-30T23:00:00+00:00" in shown and "older than its ttl" in shown
    assert "partition 2013-06-30, fresh by its freshness policy" in shown
    assert "over 2013-06-24 to 2013-06-30 (7 partitions), 504 rows" in shown
    assert row(shown, "temp", "null_share 0, min ")
    assert row(shown, "champion, 100 %", "/flights/late_arrival/predict flights_late_arrival:", "all 9")


def test_impact_names_sources_versions_traffic_and_reports(module_platform: Any):
    shown = mlops("impact", "flights/aircraft_use:aircraft_age").output
    assert row(shown, "flights/raw_planes", "source", "built, tailnum")
    assert row(shown, "champion", "version 1 (cutoff 2013-07-01, gate passed)", "aircraft_age")
    assert row(shown, "endpoint, champion", "/flights/late_arrival/predict", "100 % of the traffic")
    assert row(shown, "asset", "flights/late_arrival/drift_report")
    document = answer("impact", "flights/aircraft_use:aircraft_age")
    assert [model["model"] for model in document["models"]] == ["flights/late_arrival"]


@pytest.fixture(scope="module")
def written(module_platform: Any) -> str:
    """The contract of the platform, as the command prints it."""
    return mlops("contract").stdout


def test_a_contract_depends_on_what_is_in_use_alone(module_platform: Any, written: str):
    """The same twice; no moment, no path, so that a diff shows what readers changed."""
    assert mlops("contract").stdout == written
    assert str(module_platform.home) not in written and not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d", written)
    (reader,) = json.loads(written)["readers"]
    assert (reader["model"], reader["version"], reader["roles"]) == (
        "flights/late_arrival",
        "1",
        ["champion", "endpoint"],
    )
    read = {read["view"]: list(read["features"]) for read in reader["reads"]}
    assert read.keys() == features_read(module_platform.model).keys()
    assert read["flights/weather_hourly"] == sorted(gather().view("flights/weather_hourly").schema)


def test_what_models_in_use_read_is_declared(module_platform: Any):
    """Straight from the registry and the release records."""
    shown = mlops("check").output
    assert "flights/late_arrival version 1 (champion, endpoint /flights/late_arrival/predict)" in shown
    assert answer("check")["breaches"] == []


# -- in CI, which has no registry


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as CI checks it out."""
    copy = tmp_path_factory.mktemp("checkout")
    for package in (*PACKAGES, "deployment"):
        shutil.copytree(PROJECT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "Makefile", copy)
    return copy


def make_features(checkout: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """`make features`, with the installation that is there."""
    env = {**os.environ, "MLOPS_HOME": str(home), "COLUMNS": "400"}
    command = ["make", "-o", "setup", f"BIN={Path(sys.executable).parent}", "features"]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=120, check=False)


def edit(checkout: Path, changes: Sequence[tuple[str, str, str]]) -> None:
    for name, before, after in changes:
        file = checkout / "feature_assets" / "flights" / name
        assert before in file.read_text(), name
        file.write_text(file.read_text().replace(before, after, 1))


def features(view: str) -> str:
    """All of a view's, as a contract lists them."""
    return ",".join(sorted(gather().view(f"flights/{view}").schema))


def test_ci_fails_where_a_feature_in_use_is_gone_or_means_something_else(checkout: Path, home: Path, written: str):
    """Removed, another type, ttl or key: each by feature, model, version and endpoint. What is added is allowed."""
    without = make_features(checkout, home)
    assert without.returncode == 0 and f"No {CONTRACT}" in without.stdout

    (checkout / CONTRACT).write_text(written)
    edit(checkout, ADDED)
    kept = make_features(checkout, home)
    assert kept.returncode == 0 and "declared as they read it" in kept.stdout, kept.stdout + kept.stderr

    edit(checkout, BREAKING)
    broken = make_features(checkout, home)
    assert broken.returncode != 0, broken.stdout
    reader = "flights/late_arrival version 1 (champion, endpoint /flights/late_arrival/predict) reads it"
    told = [line for line in broken.stdout.splitlines() if line.startswith("broken: ")]
    assert all(line.endswith(reader) for line in told)
    changes = [line.removeprefix("broken: flights/").partition(";")[0] for line in told]
    assert {change.partition(":")[0]: change.partition(":")[2] for change in changes} == {
        "weather_hourly": "visib is removed",
        "carrier_punctuality": "carrier_flights_7d is Int64, was Float64",
        "origin_congestion": f"{features('origin_congestion')} holds for 6:00:00, was 3:00:00",
        "route_punctuality": f"{features('route_punctuality')} is found by dest (String), origin (String), "
        "was by origin (String), dest (String)",
    }
    assert "train and release it (dg launch --job flights__late_arrival__train)" in broken.stdout


def test_a_contract_that_is_missing_or_broken_fails(home: Path, tmp_path: Path):
    """Never taken for nothing in use."""
    assert "does not exist" in mlops("check", "--contract", str(tmp_path / "none.json"), code=2).output
    (tmp_path / "half.json").write_text('{"readers": [')
    said = mlops("check", "--contract", str(tmp_path / "half.json"), code=2).output
    assert "half.json is no feature contract" in said and said.count("\n") == 1


def test_with_nothing_in_use_everything_may_change(home: Path, tmp_path: Path):
    (tmp_path / "empty.json").write_text('{"readers": []}')
    assert "no champion and no release" in mlops("check", "--contract", str(tmp_path / "empty.json")).output


# -- more than one version in use


def another_bento(platform: Any, tag: str, name: str, without: str = "") -> str:
    """A Bento like `tag`, of a model that does not read the feature `without`."""
    original = platform.promotion.bentos.path(tag).parents[1]
    beside = shutil.copytree(original, original.parents[1] / name / f"feed{original.name[4:]}")
    plan = beside / "src" / "bundle" / "plan.json"
    document = json.loads(plan.read_text())
    for view in document["views"]:
        view["features"] = [feature for feature in view["features"] if feature != without]
    plan.write_text(json.dumps(document))
    return f"{name}:{beside.name}"


def test_champion_canary_and_what_is_declared_no_more_are_all_held_to(platform: Any):
    """Each by its own plan: a canary that reads less, and a model that still answers without a declaration."""
    releases, model = platform.promotion.releases, platform.model.id
    tag = releases.read(model).champion.release
    canary = another_bento(platform, tag, "flights_late_arrival", without="visib")
    retired = another_bento(platform, tag, "flights_retired")
    releases.start_canary(model, canary, "2", [40, 100], by="test", why="a canary")
    releases.start_canary("flights/retired", retired, "7", [100], by="test", why="an old one")
    found = {
        (item["model"], item["version"]): item["roles"] for item in json.loads(mlops("contract").stdout)["readers"]
    }
    assert found == {
        (model, "1"): ["champion", "endpoint"],
        (model, "2"): ["endpoint"],
        ("flights/retired", "7"): ["endpoint"],
    }
    reached = {item["model"]: item for item in answer("impact", "flights/weather_hourly:visib")["models"]}
    assert [(item["version"], item["weight"]) for item in reached[model]["endpoints"]] == [("1", 60)]
    assert [item["weight"] for item in reached["flights/retired"]["endpoints"]] == [100]
    both = answer("impact", "flights/weather_hourly:temp")["models"]
    (late,) = [item for item in both if item["model"] == model]
    assert [(item["role"], item["weight"]) for item in late["endpoints"]] == [("champion", 60), ("challenger", 40)]
    uses = answer("show", "flights/weather_hourly")["used_by"]
    assert {item["release"]: len(item["features"]) for item in uses["endpoints"]} == {tag: 9, canary: 8, retired: 9}


def test_a_bento_in_use_that_does_not_tell_is_no_pass(platform: Any):
    """Nobody knows what it reads: exit status 2, and one line that names the bundle."""
    tag = platform.promotion.releases.read(platform.model.id).champion.release
    (platform.promotion.bentos.path(tag) / "plan.json").write_text("{}")
    said = mlops("check", code=2).output
    assert "does not tell which features it reads" in said
