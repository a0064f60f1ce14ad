"""Bentos: built once, whole or not at all, and known to BentoML's own tools."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources.bentos import CODE, BentoBuildError, BentoStore, UnknownBentoError, content_hash
from resources.environment import home as state

MODEL = "flights/late_arrival"
LABELS = {"version": "7", "run_id": "abc"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle = tmp_path / "bundle"
    (bundle / "model").mkdir(parents=True)
    (bundle / "manifest.json").write_text(json.dumps({"framework": "xgboost"}))
    (bundle / "plan.json").write_text(json.dumps({"transforms": []}))
    (bundle / "model" / "model.ubj").write_bytes(b"{}")
    return bundle


@pytest.fixture
def bentos(home: Path) -> BentoStore:
    return BentoStore()


def test_a_bento_is_a_real_one(bentos: BentoStore, bundle: Path, home: Path) -> None:
    """`bentoml list` shows it with its labels; it holds the bundle, byte for byte, and a Dockerfile."""
    tag = bentos.build(bundle, MODEL, LABELS)
    assert tag == f"flights_late_arrival:{content_hash(bundle)}"
    listed = subprocess.run(
        [sys.executable, "-m", "bentoml", "list", "-o", "json"],
        env={**os.environ, "BENTOML_HOME": str(home / "bentoml")},
        capture_output=True,
        check=True,
    )
    assert [item["tag"] for item in json.loads(listed.stdout)] == [tag]
    assert content_hash(bentos.path(tag)) == content_hash(bundle)
    bento = bentos.path(tag).parents[1]
    assert "run_id: abc" in (bento / "bento.yaml").read_text()
    assert "FROM" in (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "xgboost==" in (bento / "env" / "python" / "requirements.txt").read_text()


def test_a_bento_carries_no_orchestrator(bentos: BentoStore, bundle: Path) -> None:
    """Its code imports with Dagster, Feast and MLflow out of reach."""
    source = bentos.path(bentos.build(bundle, MODEL, LABELS)).parent
    script = (
        "import sys; sys.modules.update(dagster=None, feast=None, mlflow=None); "
        "sys.meta_path = [f for f in sys.meta_path if getattr(f, '__name__', '') != '_EditableFinder']; "
        "import mlops_assets.serving.service as s; print(s.__file__)"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith(str(source))


def test_the_same_bundle_is_built_once(bentos: BentoStore, bundle: Path) -> None:
    """A repeated build gives the same tag and touches nothing, also when many ask at once."""
    with ThreadPoolExecutor(3) as pool:
        tags = list(pool.map(lambda _: bentos.build(bundle, MODEL, LABELS), range(3)))
    written = (bentos.path(tags[0]).parents[1] / "bento.yaml").stat().st_mtime_ns
    assert {*tags, bentos.build(bundle, MODEL, LABELS)} == {tags[0]}
    assert (bentos.path(tags[0]).parents[1] / "bento.yaml").stat().st_mtime_ns == written
    assert bentos.list(MODEL) == [tags[0]]


def test_a_bento_is_built_below_a_hidden_directory(tmp_path: Path, bundle: Path) -> None:
    """The default home is `.mlops`, and BentoML reads no hidden files."""
    store = BentoStore(tmp_path / ".mlops" / "bentoml")
    tag = store.build(bundle, MODEL, LABELS)
    assert content_hash(store.path(tag)) == content_hash(bundle)


def test_another_bundle_is_another_version(bentos: BentoStore, bundle: Path) -> None:
    """A changed or a renamed file changes the version."""
    versions = {content_hash(bundle)}
    (bundle / "model" / "model.ubj").write_bytes(b"{} ")
    versions.add(content_hash(bundle))
    (bundle / "model" / "model.ubj").rename(bundle / "model" / "other.ubj")
    versions.add(content_hash(bundle))
    assert len(versions) == 3


def test_a_failed_build_leaves_nothing(bentos: BentoStore, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serving code that needs a module which is not packed fails now, says which, and leaves no half Bento."""
    monkeypatch.setattr("resources.bentos.CODE", [part for part in CODE if not part.endswith("packed_store.py")])
    with pytest.raises(BentoBuildError, match="packed_store"):
        bentos.build(bundle, MODEL, LABELS)
    assert bentos.list() == []
    assert {path.name for path in (state() / "bentoml").iterdir()} == {"bentos", "build.lock"}


def test_an_unknown_bento_is_an_error_that_lists_the_known(bentos: BentoStore, bundle: Path) -> None:
    """Also for a tag that is a path."""
    tag = bentos.build(bundle, MODEL, LABELS)
    for asked in ("flights_late_arrival:nope", "../../etc:passwd"):
        with pytest.raises(UnknownBentoError, match=tag):
            bentos.path(asked)


@pytest.mark.parametrize(("graph", "needs"), [(False, "xgboost"), (True, "onnxruntime")])
def test_a_bento_takes_what_answers_its_model(bundle: Path, graph: bool, needs: str) -> None:
    """The framework, or ONNX Runtime alone where the model has a graph: half a gigabyte less for a tree."""
    from resources.bentos import _bentofile

    if graph:
        (bundle / "model" / "serving.onnx").write_bytes(b"")
    packages = {package.split("==")[0] for package in _bentofile(bundle, MODEL, "name", LABELS)["python"]["packages"]}
    assert {"xgboost", "onnxruntime"} & packages == {needs}
    assert "hiredis" in packages, "a Bento may be told of a Redis"


def test_every_package_is_pinned_to_a_version_that_an_index_has(bundle: Path) -> None:
    """Also where the wheel that is installed here has a label of its builder's, as PyTorch's `+cpu` has."""
    from resources.bentos import _bentofile

    for framework in ("xgboost", "torch"):
        (bundle / "manifest.json").write_text(json.dumps({"framework": framework}))
        packages = _bentofile(bundle, MODEL, "flights_late_arrival", LABELS)["python"]["packages"]
        assert any(package.startswith(f"{framework}==") for package in packages)
        assert all(re.fullmatch(r"[\w.\[\]-]+==\d[\w.]*", package) for package in packages), packages
