"""What Spark needs and what is not there is said at once, before anything is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resources.environment import PROJECT
from resources.spark import OtherMasterError, session


def said(path: Path, **variables: str) -> str:
    """The last words of a process that asks for a session where only this directory has programs."""
    mine = {name: value for name, value in os.environ.items() if name not in ("JAVA_HOME", "MLOPS_SPARK_MASTER")}
    asked = [sys.executable, "-c", "from resources.spark import session; session()"]
    environment = {**mine, "PATH": str(path), **variables}
    ended = subprocess.run(asked, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    return ended.stderr.splitlines()[-1]


def test_a_machine_without_java_is_told_what_to_install(tmp_path: Path) -> None:
    assert "SparkUnavailableError" in said(tmp_path)
    assert "Spark needs Java 17 or later" in said(tmp_path) and "no java on the PATH" in said(tmp_path)
    assert f"no java in {tmp_path}/bin" in said(tmp_path, JAVA_HOME=str(tmp_path))


def test_a_java_that_is_too_old_is_named(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    java.chmod(0o755)
    assert f'{java} is version "1.8' in said(tmp_path)


def test_a_master_that_is_not_there_is_named_within_seconds(tmp_path: Path) -> None:
    words = said(Path(os.environ["PATH"]), MLOPS_SPARK_MASTER="spark://127.0.0.1:1,127.0.0.1:nowhere")
    assert "ClusterUnreachableError: No Spark master answers at spark://127.0.0.1:1" in words


def test_a_process_has_one_session() -> None:
    """A second cluster is refused, and not quietly the first one."""
    assert session() is session()
    with pytest.raises(
        OtherMasterError, match=r"session on local\[\*\] and was asked for one on spark://elsewhere:7077"
    ):
        session("spark://elsewhere:7077")
