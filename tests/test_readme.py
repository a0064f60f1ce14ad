"""The README, read as code: its examples load and compute, and all that it names exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mlops_assets.cli import app
from resources.environment import PROJECT

README = (PROJECT / "README.md").read_text()
PAGES = [
    *(PROJECT / name for name in ("README.md", "CHANGELOG.md", "deployment/README.md")),
    *PROJECT.glob("docs/**/*.md"),
]
PACKAGES = ("feature_assets", "mlops_assets", "model_assets", "resources", "sensors")
EXAMPLES = dict(re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE))
CODE = [*re.findall(r"`([^`\n]+)`", README), *"\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).splitlines()]
COMMANDS = sorted({code for code in CODE if code.startswith("mlops ")})
GROUP: Any = typer.main.get_command(app)
# Loads the examples with all else, and computes the feature of one of them on a real day.
JUDGE = """
import json
from datetime import UTC, datetime, timedelta
from mlops_assets.claims import claims, conform
from mlops_assets.definitions import catalog, defs
view = catalog.view("flights/recent_wind")
day = datetime(2013, 7, 1, tzinfo=UTC)
rows = conform(view(catalog.tables["flights/raw_weather"]((day, day + timedelta(days=1)))), view)
print(json.dumps({
    "keys": [key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()],
    "jobs": [job.name for job in defs.resolve_all_job_defs()],
    "broken": [claim.name for claim in claims(rows, view) if not claim.passed],
    "rows": rows.height,
}))
"""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the project holds once the README's files are written into it."""
    copy = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in EXAMPLES.items():
        assert not (copy / path).exists(), f"{path} is an example, and a file of the project"
        (copy / path).write_text(code)
    done = subprocess.run([sys.executable, "-c", JUDGE], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_examples_become_assets_and_jobs(judged: dict[str, Any]):
    """A model's whole chain and a view's two faces, by files of one screen each."""
    assert set(EXAMPLES) == {"model_assets/flights/weather_risk.py", "feature_assets/flights/wind.py"}
    chain = ("training_set", "candidate", "champion", "bento", "endpoint", "predictions", "scores", "drift_report")
    assert {f"flights/weather_risk/{link}" for link in chain} <= set(judged["keys"])
    assert {"flights/offline/recent_wind", "flights/online/recent_wind"} <= set(judged["keys"])
    assert max(len(code.splitlines()) for code in EXAMPLES.values()) <= 30


def test_the_examples_feature_keeps_its_promises(judged: dict[str, Any]):
    """Computed on a real day, it is what it declares: one row per airport and hour."""
    assert judged["broken"] == [] and judged["rows"] == 3 * 24


def test_the_job_that_is_launched_exists(judged: dict[str, Any]):
    launched = re.findall(r"dg launch --job (\S+)", README)
    assert launched and set(launched) <= set(judged["jobs"])


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one_of_ours(line: str):
    """Its words lead to a command that explains itself and takes the options shown."""
    words, path, command = line.split()[1:], list[str](), GROUP
    while words and hasattr(command, "commands"):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    assert CliRunner().invoke(app, [*path, "--help"]).exit_code == 0
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_command_is_named():
    """What `mlops --help` lists, the README tells."""
    assert {line.split()[1] for line in COMMANDS} == set(GROUP.commands)


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = {code.split()[1] for code in CODE if code.startswith("make ")}
    assert {"demo", "up", "test"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_every_link_and_picture_is_there(page: Path):
    """Nothing relative leads nowhere, and no page holds a path of somebody's machine."""
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    assert re.findall(r"(?<![\w.$}])/(?:home|root|tmp|work|Users)/\S*", text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_every_module_that_is_named_exists(page: Path):
    """`resources/lake.py` in a text is a file, from the project's root or from where the text lies."""
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", page.read_text())
    assert [path for path in named if not (PROJECT / path).exists() and not (page.parent / path).exists()] == []


def test_the_folder_map_names_every_folder():
    """Each folder of the map exists, and no package is missing from it."""
    section = README.partition("## Folders")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| \[(\w+)/\]", section, re.MULTILINE))
    assert all((PROJECT / name).is_dir() for name in named)
    assert named >= {*PACKAGES, "deployment", "tests", "docs"}
