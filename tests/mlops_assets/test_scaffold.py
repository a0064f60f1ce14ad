"""`mlops new` in a copy of the project: what it writes loads, keeps every convention, and materializes as it stands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_assets.catalog import Catalog, UnknownDeclarationError, gather
from mlops_assets.scaffold import ScaffoldError, write_features, write_model
from resources.environment import PROJECT

PARTS = ("mlops_assets", "feature_assets", "model_assets", "resources", "sensors", "deployment")
TESTS = ("tests/conftest.py", "tests/mlops_assets/conftest.py", "tests/mlops_assets/test_definitions.py")
FEATURES, CLASSIFIER, REGRESSOR = "flights/busy", "flights/tardy", "flights/slow"
MATERIALIZE = """
import dagster as dg
from mlops_assets.definitions import catalog, defs
from resources.environment import resources_for

quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
days = {"dagster/asset_partition_range_start": "2013-01-01", "dagster/asset_partition_range_end": "2013-02-03"}
with dg.DagsterInstance.ephemeral() as instance:
    for job, options in (("tables", {"tags": days}), ("tardy__train", {"partition_key": "2013-02-04"})):
        result = defs.resolve_job_def(f"flights__{job}").execute_in_process(quiet, instance, **options)
        assert all(check.passed for check in result.get_asset_check_evaluations() if check.severity.name == "ERROR")
stores = resources_for()
busy = stores["lake"].scan(["flights", "offline", "busy"], ["2013-01-02", "2013-01-03"]).collect()
print(busy.height, busy["busy_rows_1d"].sum(), *busy["event_timestamp"].dt.strftime("%F").unique().sort())
version = stores["mlflow"].version("flights.tardy", stores["mlflow"].alias("flights.tardy", "champion"))
print(version.version, version.tags["gate"], stores["releases"].read("flights/tardy").champion.weight)
"""


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python command in the copy, which comes before the installed project."""
    env = {**os.environ, "PYTHONPATH": str(project), "MLOPS_HOME": str(project / ".mlops"), "MLOPS_ENV": "test"}
    return subprocess.run(
        [sys.executable, *words], cwd=project, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which a feature view, a classifier and a regressor were written, one after the other."""
    root = tmp_path_factory.mktemp("project")
    for part in PARTS:
        shutil.copytree(PROJECT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", *TESTS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, root / name)
    for words in (["features", FEATURES], ["model", CLASSIFIER], ["model", REGRESSOR, "--label", "arrival_delay"]):
        written = run(root, "-m", "mlops_assets.cli", "new", *words)
        folder = "feature_assets" if words[0] == "features" else "model_assets"
        assert written.stdout.strip() == f"Wrote {root / folder / words[1]}.py", written.stderr
    return root


def test_what_is_written_passes_the_linter_and_the_formatter(project: Path):
    """By the project's own rules."""
    for words in (["check"], ["format", "--check"]):
        ran = run(project, "-m", "ruff", *words, "feature_assets", "model_assets")
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_is_written_loads_and_keeps_every_convention(project: Path):
    """The conformance tests of the definitions pass in the copy, with the new assets among them."""
    tests = "not dagsters_own_check and not loading and not serving_process"
    ran = run(project, "-m", "pytest", "-v", "-p", "no:cacheprovider", TESTS[-1], "-k", tests)
    assert ran.returncode == 0, ran.stdout[-3000:]
    for name in (
        "flights/offline/busy",
        "flights/online/busy",
        "flights/tardy/endpoint",
        "flights/slow/performance_report",
    ):
        assert f"[{name}]" in ran.stdout


def test_what_is_written_materializes_as_it_stands(project: Path):
    """Five weeks of real flights: features for two of their days, and a model from its training set to its endpoint."""
    ran = run(project, "-c", MATERIALIZE)
    assert ran.returncode == 0, ran.stderr[-3000:]
    features, release = ran.stdout.strip().splitlines()[-2:]
    rows, flights, *days = features.split()
    assert int(rows) > 500 and float(flights) >= int(rows) and days == ["2013-01-02", "2013-01-03"]
    assert release == "1 passed 100"


def test_the_model_reads_the_view_that_was_written_before_it(project: Path):
    """Every view keyed like the labels is offered; a Bool is classified, a number regressed, both with a mild floor."""
    classifier, regressor = ((project / "model_assets" / f"{name}.py").read_text() for name in (CLASSIFIER, REGRESSOR))
    assert "        busy,\n" in classifier
    assert (
        'label="late"' in classifier and "XGBoostClassifier()" in classifier and '"roc_auc", at_least=0.5' in classifier
    )
    assert 'label="arrival_delay"' in regressor and "XGBoostRegressor()" in regressor


# -- refusals: nothing is written ------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder where nothing may turn up."""
    monkeypatch.setattr("mlops_assets.scaffold.PROJECT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda: write_model("flights/late_arrival"), r"the name is taken \(there are: .*late_arrival.*Choose another"),
        (lambda: write_features("flights/arrivals"), r"the name is taken"),
        (lambda: write_model("late"), r"'late': it is no <team>/<name>.*team flights.*Write it like"),
        (lambda: write_model("flights/Late-Arrival"), r"it is no <team>/<name> of words in lower case"),
        (lambda: write_model("flights/late/twice"), r"it is no <team>/<name>"),
        (lambda: write_features("flights/class"), r"it is no <team>/<name>"),
        (lambda: write_model("shops/x"), r"team 'shops' has no labels \(there are: .*vision/digits\).*--labels"),
        (lambda: write_model("flights/x", label="lat"), r"has no target 'lat' \(there are: .*late\).*Name one"),
        (lambda: write_features("shops/x"), r"team 'shops' has no partitioned source.*declare a source first"),
        (lambda: write_features("flights/x", source="flights/raw_planes"), r"no partitioned source flights/raw_planes"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_with_the_fix(nowhere: Path, write, says: str):
    with pytest.raises(ScaffoldError, match=says):
        write()
    assert list(nowhere.iterdir()) == []


def test_unknown_labels_are_refused_with_the_nearest(nowhere: Path):
    with pytest.raises(
        UnknownDeclarationError, match=r"label table 'flights/arivals'.*Did you mean 'flights/arrivals'"
    ):
        write_model("shops/x", labels="flights/arivals")


def test_labels_of_another_team_are_used_where_they_are_named(nowhere: Path):
    path = write_model("shops/x", labels="flights/arrivals")
    assert path == nowhere / "model_assets" / "shops" / "x.py"
    assert "labels=arrivals," in path.read_text() and (path.parent / "__init__.py").exists()


def test_a_file_that_exists_is_the_users(nowhere: Path):
    """Also where it declares something of another name."""
    path = nowhere / "model_assets" / "flights" / "mine.py"
    path.parent.mkdir(parents=True)
    path.write_text("precious = True\n")
    with pytest.raises(ScaffoldError, match=r"model_assets/flights/mine.py exists .*mine.py.*Choose another name"):
        write_model("flights/mine")
    assert path.read_text() == "precious = True\n"


def test_of_two_views_that_share_a_features_name_one_is_offered(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    """A model with both would be refused when it loads."""
    catalog = gather()
    weather = catalog.view("flights/weather_hourly")
    twin = Catalog({**catalog.tables, "flights/weather_twin": weather}, catalog.models)
    monkeypatch.setattr("mlops_assets.scaffold.gather", lambda: twin)
    assert write_model("flights/x").read_text().count("weather_hourly,\n") == 1
