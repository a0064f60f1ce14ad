"""The platform on one machine with Docker: the same processes as on Kubernetes, closed to every other machine."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from resources.environment import PROJECT, SETTINGS
from tests.deployment.applied import Platform, settings_of

FILE = PROJECT / "deployment" / "local" / "compose.yaml"
ASKED = re.compile(r"\$\{(\w+):\?")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    said: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return said


def test_it_is_what_the_compose_specification_takes(tmp_path):
    """By the specification's own schema, which refuses what it does not know."""
    asked = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    assert subprocess.run([*asked, FILE], capture_output=True, check=False).returncode == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(FILE.read_text().replace("restart: unless-stopped", "restarts: unless-stopped"))
    assert subprocess.run([*asked, wrong], capture_output=True, check=False).returncode == 1


def test_the_processes_are_those_of_kubernetes(compose: dict[str, Any], whole: Platform):
    """Word for word, but for where the workspace is mounted and the names of a cluster."""
    for name in ("webserver", "daemon", "code-server", "endpoint", "postgres", "mlflow"):
        (container,) = whole.pod(name).containers
        expected = [word.replace("/workspace/workspace.yaml", "/workspace.yaml") for word in container["args"]]
        expected = [re.sub(r",mlflow\.[\w.]+:5000", "", word) for word in expected]
        assert compose["services"][name]["command"] == expected, name
        assert compose["services"][name]["image"] == container["image"], name


def test_nothing_is_reached_from_another_machine(compose: dict[str, Any]):
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    assert not [name for name, service in compose["services"].items() if "network_mode" in service]


def test_ours_cannot_become_root_or_change_the_image(compose: dict[str, Any]):
    for service in compose["services"].values():
        if service["image"].startswith("mlops:"):
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_no_password_is_in_the_file_and_each_is_asked_for():
    """Docker refuses to start with the name of what is missing; the example names them all and holds none."""
    example = settings_of(FILE.with_name("compose.example.env"))
    assert set(ASKED.findall(FILE.read_text())) == set(example)
    assert all("CHANGE-ME" in value for value in example.values())
    assert not re.search(r"(password|PASSWORD|SECRET_ACCESS_KEY): (?!\")[^$\s]", FILE.read_text())


def test_every_address_is_given_to_who_has_the_definitions(compose: dict[str, Any]):
    for name in ("webserver", "daemon", "code-server", "bucket"):
        given = compose["services"][name]["environment"]
        assert {setting.variable for setting in SETTINGS} <= set(given), name
    given = compose["services"]["endpoint"]["environment"]
    assert "MLOPS_POSTGRES_URL" not in given and "redis" in given["MLOPS_ONLINE_STORE"]


def test_what_is_mounted_is_there(compose: dict[str, Any]):
    """A path that does not exist becomes an empty directory, and the process fails without saying why."""
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (FILE.parent / source).is_file() if source.startswith(".") else source in compose["volumes"], mount


def test_nobody_starts_before_what_it_needs(compose: dict[str, Any]):
    """Each that is waited for can be asked whether it is there."""
    for service in compose["services"].values():
        for name, how in service.get("depends_on", {}).items():
            other = compose["services"][name]
            if how["condition"] == "service_healthy":
                assert other["healthcheck"]["test"]
            else:
                assert (how["condition"], other["restart"]) == ("service_completed_successfully", "no")
