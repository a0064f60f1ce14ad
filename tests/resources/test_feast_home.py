"""Feast's state is found below MLOPS_HOME, and its registry loses nothing that anybody registered."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resources.environment import PROJECT

YAML = PROJECT / "feature_assets" / "feature_store.yaml"


def test_the_yaml_as_it_stands_leads_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working directory; and to `.mlops` of the project when MLOPS_HOME is unset."""
    from feast.infra.registry.registry import Registry
    from feast.repo_config import load_repo_config

    import resources.environment

    monkeypatch.delenv("MLOPS_ONLINE_STORE", raising=False)
    config = load_repo_config(YAML.parent, YAML)
    assert config.online_store.path == f"{home}/feast/online_store.db"
    assert Registry("mlops_assets", config.registry, YAML.parent)._file_path == home / "feast" / "registry.db"
    monkeypatch.delenv("MLOPS_HOME")
    monkeypatch.setattr(resources.environment, "PROJECT", home / "project")
    assert load_repo_config(YAML.parent, YAML).online_store.path == f"{home}/project/.mlops/feast/online_store.db"


def registry(name: str, description: str = "") -> Any:
    """A registry of one entity."""
    from feast import Entity, ValueType
    from feast.protos.feast.core.Registry_pb2 import Registry

    entity = Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=description).to_proto()
    entity.spec.project = "test"
    return Registry(registry_schema_version="1", entities=[entity])


@pytest.fixture
def store(home: Path) -> Any:
    """The registry, holding the entity `airport`; each call is another writer."""
    from feast.repo_config import RegistryConfig

    from resources.feast_home import HomeRegistryStore

    def opened() -> Any:
        return HomeRegistryStore(RegistryConfig(path="registry.db"), Path("unused"))

    opened().update_registry_proto(registry("airport"))
    return opened


def entities(store: Any) -> dict[str, str]:
    return {entity.spec.name: entity.spec.description for entity in store().get_registry_proto().entities}


def test_writers_that_have_not_seen_each_other_lose_nothing(store: Any, home: Path) -> None:
    """Additions, changes and deletions of different objects are put together, whoever writes last."""
    one, other = store(), store()
    mine, theirs = one.get_registry_proto(), other.get_registry_proto()
    theirs.entities.extend(registry("carrier").entities)
    theirs.entities[0].spec.description = "Where it leaves"
    other.update_registry_proto(theirs)
    mine.entities.extend(registry("aircraft").entities)
    one.update_registry_proto(mine)
    assert entities(store) == {"airport": "Where it leaves", "carrier": "", "aircraft": ""}
    del mine.entities[[entity.spec.name for entity in mine.entities].index("carrier")]
    one.update_registry_proto(mine)
    theirs.entities.extend(registry("route").entities)
    other.update_registry_proto(theirs)
    assert sorted(entities(store)) == ["aircraft", "airport", "route"]
    assert [path.name for path in (home / "feast").iterdir() if path.name.endswith(".tmp")] == []


def test_what_is_not_written_yet_outlives_a_reading_of_what_others_wrote(store: Any) -> None:
    """Feast reads the file anew in the middle of its changes, whenever somebody else wrote it meanwhile."""
    one, other = store(), store()
    mine, theirs = one.get_registry_proto(), other.get_registry_proto()
    mine.entities.extend(registry("aircraft").entities)
    theirs.entities.extend(registry("carrier").entities)
    other.update_registry_proto(theirs)
    again = one.get_registry_proto()
    assert sorted(entity.spec.name for entity in again.entities) == ["aircraft", "airport", "carrier"]
    assert sorted(entities(store)) == ["airport", "carrier"], "nothing is written by reading"
    one.update_registry_proto(again)
    assert sorted(entities(store)) == ["aircraft", "airport", "carrier"]


def test_what_cannot_be_carried_over_is_said_once(store: Any) -> None:
    """Both changed one object: the reading says so, and the next one gives what the file holds."""
    from resources.feast_home import StaleRegistryError

    one, other = store(), store()
    mine, theirs = one.get_registry_proto(), other.get_registry_proto()
    theirs.entities[0].spec.description, mine.entities[0].spec.description = "theirs", "mine"
    other.update_registry_proto(theirs)
    with pytest.raises(StaleRegistryError, match="airport"):
        one.get_registry_proto()
    assert one.get_registry_proto().entities[0].spec.description == "theirs"


def test_two_changes_of_one_object_are_refused(store: Any) -> None:
    from resources.feast_home import StaleRegistryError

    one, other = store(), store()
    mine, theirs = one.get_registry_proto(), other.get_registry_proto()
    theirs.entities[0].spec.description, mine.entities[0].spec.description = "theirs", "mine"
    other.update_registry_proto(theirs)
    with pytest.raises(StaleRegistryError, match=r"registry\.db was changed.*entities.*airport.*Apply again") as caught:
        one.update_registry_proto(mine)
    assert entities(store) == {"airport": "theirs"}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_registry_that_cannot_be_read_says_so(store: Any, home: Path) -> None:
    """A damaged file is not taken for none, and not written over."""
    from resources.feast_home import RegistryUnreachableError

    damaged = (home / "feast" / "registry.db").read_bytes()[:-5]
    (home / "feast" / "registry.db").write_bytes(damaged)
    for use in (lambda: store().get_registry_proto(), lambda: store().update_registry_proto(registry("route"))):
        with pytest.raises(RegistryUnreachableError, match=r"registry\.db cannot be used \(DecodeError.*feast apply"):
            use()
    assert (home / "feast" / "registry.db").read_bytes() == damaged


def test_the_feast_command_line_works_in_its_folder_and_from_the_root(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`feast apply` where the yaml is, then a listing from the project's root, on what the teams declare."""
    from click.testing import CliRunner
    from feast.cli.cli import cli

    command = [str(Path(sys.executable).with_name("feast")), "apply"]
    applied = subprocess.run(command, cwd=YAML.parent, capture_output=True, text=True, check=True)
    assert "Deploying infrastructure for flights__weather_hourly" in applied.stdout
    assert "WARNING" not in applied.stderr
    monkeypatch.chdir(PROJECT)
    listed = CliRunner().invoke(cli, ["-c", "feature_assets", "feature-views", "list"], catch_exceptions=False)
    assert "flights__weather_hourly" in listed.output
    services = CliRunner().invoke(cli, ["-c", "feature_assets", "feature-services", "list"], catch_exceptions=False)
    assert "flights__late_arrival" in services.output
    assert sorted(path.name for path in (home / "feast").glob("*.db")) == ["online_store.db", "registry.db"]
