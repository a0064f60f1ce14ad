"""The choices of what is applied, each read once."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from resources.environment import PROJECT
from tests.deployment.applied import CHOICES, KUBERNETES, Platform, gathered, settings_of


@pytest.fixture(scope="session", params=CHOICES)
def choice(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def platform(choice: str) -> Platform:
    """Each choice in its turn."""
    return Platform(tuple(gathered(CHOICES[choice])))


@pytest.fixture(scope="session")
def whole() -> Platform:
    """The one with servers of its own."""
    return Platform(tuple(gathered(KUBERNETES)))


@pytest.fixture(scope="session")
def secret() -> dict[str, str]:
    """The example of the Secret that the user makes."""
    return settings_of(KUBERNETES / "secret.example.env")


@pytest.fixture(scope="session")
def launcher() -> dict[str, Any]:
    """What production's dagster.yaml says of the Jobs of runs."""
    config: dict[str, Any] = yaml.safe_load((PROJECT / "deployment/production/dagster.yaml").read_text())
    return dict(config["run_launcher"]["config"])
