"""Feast's state is found below MLOPS_HOME, and its registry is never overwritten unseen."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://cache:6380/2", "cache:6380,db=2"),
        ("redis://cache", "cache:6379,db=0"),
        ("rediss://user:secret@cache:6379/0", "cache:6379,db=0,ssl=true,username=user,password=secret"),
    ],
)
def test_a_redis_url_becomes_feasts_own_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str, connection: str
) -> None:
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.repo_config import load_repo_config

    monkeypatch.setenv("MLOPS_ONLINE_STORE", url)
    online = load_repo_config(YAML.parent, YAML).online_store
    assert isinstance(online, RedisOnlineStoreConfig)
    assert online.connection_string == connection


def test_a_writer_that_has_not_seen_the_newest_registry_is_refused(home: Path) -> None:
    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.repo_config import RegistryConfig

    from resources.feast_home import HomeRegistryStore, StaleRegistryError

    store = HomeRegistryStore(RegistryConfig(path="registry.db"), Path("unused"))
    store.update_registry_proto(Registry(registry_schema_version="1"))
    mine, theirs = store.get_registry_proto(), store.get_registry_proto()
    store.update_registry_proto(theirs)
    with pytest.raises(StaleRegistryError, match=r"registry\.db was changed.*Apply again") as caught:
        store.update_registry_proto(mine)
    assert store.get_registry_proto() == theirs
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert [path.name for path in (home / "feast").iterdir() if path.name.endswith(".tmp")] == []


def test_the_feast_command_line_works_in_its_folder_and_from_the_root(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`feast apply` where the yaml is, then a listing from the project's root, on what the teams declare."""
    from click.testing import CliRunner
    from feast.cli.cli import cli

    command = [str(Path(sys.executable).with_name("feast")), "apply"]
    applied = subprocess.run(command, cwd=YAML.parent, capture_output=True, text=True, check=True)
    assert "feature service flights__late_arrival" in applied.stdout
    assert "WARNING" not in applied.stderr
    monkeypatch.chdir(PROJECT)
    listed = CliRunner().invoke(cli, ["-c", "feature_assets", "feature-views", "list"], catch_exceptions=False)
    assert "flights__weather_hourly" in listed.output
    assert sorted(path.name for path in (home / "feast").glob("*.db")) == ["online_store.db", "registry.db"]
