"""What is read is what was saved: every difference is refused by name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from resources.artifacts.manifest import (
    DamagedArtifactError,
    Manifest,
    UnreadableManifestError,
    manifest_path,
    placed,
    verified,
)

ZERO = "0" * 64


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "model" / "model.ubj").write_bytes(b"trees" * 1000)
    (bundle / "plan.json").write_text("{}")
    Manifest.of(bundle).write(bundle)
    return bundle


def flip(bundle: Path) -> None:
    path = bundle / "model" / "model.ubj"
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip, "model/model.ubj was changed"),
        (lambda bundle: (bundle / "model" / "model.ubj").write_bytes(b""), "model/model.ubj was changed"),
        (lambda bundle: (bundle / "plan.json").unlink(), "plan.json is missing"),
        (lambda bundle: shutil.rmtree(bundle / "model"), "model/model.ubj is missing"),
        (lambda bundle: (bundle / "model" / "serving.onnx").write_bytes(b"x"), "model/serving.onnx was added"),
    ],
)
def test_a_difference_is_refused_by_name(bundle: Path, harm: Callable[[Path], object], told: str) -> None:
    """One bit, a lost or an added file: the error names it, and says what to do."""
    assert verified(bundle) == bundle
    harm(bundle)
    with pytest.raises(DamagedArtifactError, match=f"{told}.*mlops artifacts verify"):
        verified(bundle)


def test_sha256sum_reads_it(bundle: Path) -> None:
    """Whoever has none of this library can check a model with a tool that every system has."""
    command = ["sha256sum", "--strict", "-c", "bundle.sha256"]
    assert shutil.which("sha256sum"), "coreutils are missing"
    assert subprocess.run(command, cwd=bundle.parent, check=False, capture_output=True).returncode == 0
    flip(bundle)
    checked = subprocess.run(command, cwd=bundle.parent, check=False, capture_output=True, text=True)
    assert checked.returncode != 0 and "bundle/model/model.ubj: FAILED" in checked.stdout


def test_the_digest_is_of_names_and_contents_alone(bundle: Path, tmp_path: Path) -> None:
    """Not of where the directory lies or what it is called; another name of a file is another digest."""
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "elsewhere" / "copy"))
    assert Manifest.of(elsewhere).digest == Manifest.of(bundle).digest
    (elsewhere / "plan.json").rename(elsewhere / "other.json")
    assert Manifest.of(elsewhere).digest != Manifest.of(bundle).digest
    assert Manifest.beside(bundle) == Manifest.of(bundle)


def test_what_is_older_than_manifests_is_read_as_it_is(bundle: Path) -> None:
    manifest_path(bundle).unlink()
    flip(bundle)
    assert verified(bundle) == bundle


@pytest.mark.parametrize(
    "line", ["nonsense", f"{ZERO}  bundle/../../etc/passwd", f"{ZERO}  /etc/x", ZERO, f"{ZERO}  x"]
)
def test_a_manifest_that_is_none_is_refused(bundle: Path, line: str) -> None:
    """Nothing outside of the directory is ever named by one."""
    manifest_path(bundle).write_text(f"{line}\n")
    with pytest.raises(UnreadableManifestError, match=r"bundle\.sha256"):
        Manifest.beside(bundle)


@pytest.mark.parametrize("shared", [True, False])
def test_only_what_nobody_may_write_to_is_shared(bundle: Path, tmp_path: Path, shared: bool) -> None:
    """A file of the object store has another name and is read-only; any other could be changed under the copy."""
    model = bundle / "model" / "model.ubj"
    if shared:
        (tmp_path / "object").hardlink_to(model)
        model.chmod(0o444)
    placed(bundle, tmp_path / "src" / "bundle", Manifest.of(bundle))
    assert (tmp_path / "src" / "bundle" / "model" / "model.ubj").samefile(model) is shared
    assert verified(tmp_path / "src" / "bundle")
