"""Bentos: a release bundle and the code that serves it, immutable, under BentoML's own layout.

    <root>/bentos/<team>_<model>/<version>/    bento.yaml, env/, src/ (bundle/, bundle.sha256, our code)

`version` is the content hash of the bundle, so the same model is built once. BentoML copies straight
into its store, where a kill would leave half a Bento; so it builds in a store of its own beside, and the
finished Bento is renamed into place. Imports neither Dagster nor BentoML: the serving process finds
bundles through this module too.

What a Bento is asked and answers is not written down a second time: `plan.json`, `schema.json` and `postprocess.json`
are the request and response schema, `golden.json` the example, and the OpenAPI page is made of them when it is asked.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from resources.artifacts.manifest import Manifest, placed
from resources.environment import home

SERVICE = "mlops_assets.serving.service:Endpoint"
CODE = (  # what the serving process imports, relative to the project
    "mlops_assets/__init__.py",
    "mlops_assets/checkpoints.py",  # which the trainers name; nothing is fitted where it serves
    "mlops_assets/fields.py",
    "mlops_assets/input_schema.py",
    "mlops_assets/serving",
    "mlops_assets/trainers",
    "resources/__init__.py",
    "resources/artifacts/__init__.py",
    "resources/artifacts/manifest.py",
    "resources/bentos.py",
    "resources/environment.py",
    "resources/hardware/__init__.py",
    "resources/online/__init__.py",
    "resources/online/packed_row.py",
    "resources/online/packed_store.py",
    "resources/online/redis_wire.py",
    "resources/release_record.py",
    "resources/releases.py",
    "resources/serving_status.py",
)
PROJECT = Path(__file__).resolve().parents[1]
# Polars writes answers as Arrow; httptools and uvloop are what uvicorn is quick with, and BentoML asks for neither.
PACKAGES = ("fastapi", "filelock", "httptools", "msgpack", "numpy", "orjson", "polars", "uvloop")
SERVING_GRAPH = "serving.onnx"  # a model that has one needs its framework no more
FRAMEWORK_PACKAGES = {  # where they are not only the one that is named as the framework is
    "sklearn": ("scikit-learn", "skops"),
    "onnx": ("onnx", "onnxruntime"),
    "torch": ("torch", "safetensors"),
    "mlx": ("mlx", "mlx-metal" if sys.platform == "darwin" else "mlx-cpu", "safetensors"),
    "keras": ("keras", "torch", "safetensors"),
    "net": ("torch", "safetensors"),
}
BUILD_SECONDS = 300
# `python -m bentoml`, but an editable install of this project may not lend the Bento what CODE forgot.
BENTOML_ALONE = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
runpy.run_module("bentoml", run_name="__main__", alter_sys=True)
"""


class UnknownBentoError(LookupError):
    """A Bento was asked for that the store does not hold."""

    @classmethod
    def of(cls, tag: str, known: list[str]) -> Self:
        return cls(f"No Bento {tag!r} (known: {', '.join(known) or 'none'}). Materialize the model's 'bento' asset.")


class BentoBuildError(RuntimeError):
    """BentoML could not build a bundle."""

    @classmethod
    def of(cls, model: str, output: str) -> Self:
        return cls(f"The Bento of {model!r} was not built. BentoML said: {output[-2000:].strip()}")


@dataclass(frozen=True)
class BentoStore:
    """The Bentos under `root`; without one, those of MLOPS_HOME, found when used."""

    root: Path | None = None

    def build(self, bundle: Path, model: str, labels: Mapping[str, str]) -> str:
        """Build the Bento of a bundle and return its tag; a bundle that was built before is not built again.

        `labels` (`version` and `run_id` of the model among them) are what `bentoml list` and a Bento that is
        served alone show. Raises BentoBuildError.
        """
        from filelock import FileLock

        manifest = Manifest.of(bundle)
        name, version = model.replace("/", "_"), _version(manifest)
        final = self._bentos / name / version
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / "build.lock"):
            if not final.exists():
                for left in self._root.glob("build-*"):
                    shutil.rmtree(left)  # its builder was killed: another one would hold the lock
                with TemporaryDirectory(prefix="build-", dir=self._root) as work:
                    _build(Path(work), bundle, model, name, version, labels)
                    built = Path(work, "home", "bentos", name, version)
                    placed(bundle, built / "src" / "bundle", manifest)
                    built.rename(final)
            _write(final.parent / "latest", version)
        return f"{name}:{version}"

    def path(self, tag: str) -> Path:
        """The bundle inside a Bento. UnknownBentoError when there is none of that tag."""
        if tag not in self.list():
            raise UnknownBentoError.of(tag, self.list())
        return self._bentos / tag.replace(":", "/") / "src" / "bundle"

    def list(self, model: str | None = None) -> list[str]:
        """The tags of all Bentos, or of one model's, oldest first."""
        name = model.replace("/", "_") if model else "*"
        found = sorted(self._bentos.glob(f"{name}/*/bento.yaml"), key=lambda path: path.stat().st_mtime_ns)
        return [f"{path.parents[1].name}:{path.parent.name}" for path in found]

    @property
    def _root(self) -> Path:
        return self.root or home() / "bentoml"

    @property
    def _bentos(self) -> Path:
        return self._root / "bentos"


def content_hash(directory: Path) -> str:
    """16 hex digits over the names and contents of every file in a directory."""
    return _version(Manifest.of(directory))


def _version(manifest: Manifest) -> str:
    return manifest.digest[:16]


def _build(work: Path, bundle: Path, model: str, name: str, version: str, labels: Mapping[str, str]) -> None:
    """Run `bentoml build` on a context of the serving code alone, into a store under `work`.

    The context is not under `work`: BentoML reads none on a hidden path, and `.mlops` is one. The bundle is put in
    afterwards: BentoML would copy it twice, and where it lies in the object store it need not be copied at all.
    """
    with TemporaryDirectory(prefix="bento-") as directory:
        context = Path(directory)
        for part in CODE:
            _copy(PROJECT / part, context / part)
        (context / "bentofile.yaml").write_text(json.dumps(_bentofile(bundle, model, name, labels)))  # JSON is YAML
        _run_bentoml(context, work / "home", model, version)


def _run_bentoml(context: Path, store: Path, model: str, version: str) -> None:
    """Build in a process of its own, because BentoML changes the working directory and caches its home for good.

    It imports the service from the context, so a module missing from CODE fails here and not when served.
    """
    ran = subprocess.run(
        [sys.executable, "-c", BENTOML_ALONE, "build", str(context), "--version", version, "--output", "tag"],
        cwd=context,
        env={
            **os.environ,
            "BENTOML_HOME": str(store),
            "BENTOML_DO_NOT_TRACK": "true",  # BentoML takes only this word for yes
            "PYTHONDONTWRITEBYTECODE": "1",  # else what the import compiles is packed too
        },
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if ran.returncode:
        raise BentoBuildError.of(model, ran.stdout + ran.stderr)


def _bentofile(bundle: Path, model: str, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    packages = [*PACKAGES, *_answering(bundle), *_sometimes()]
    return {
        "service": SERVICE,
        "name": name,
        "description": f"{model}, with its feature plan, schemas, drift baseline and golden requests.",
        "labels": {"model": model.replace("/", "."), **labels},
        "include": ["**"],
        # The Python that the packages were tested with, to the last digit: `3.11-slim` is another image next month.
        "docker": {"base_image": f"python:{platform.python_version()}-slim"},
        # Locking would resolve against an index; the versions that were tested here are stated instead.
        "python": {"packages": [_pinned(package) for package in packages], "lock_packages": False},
    }


def _pinned(package: str) -> str:
    """The version that is installed here, as an index knows it: a wheel's local label (`+cpu`) is its builder's own."""
    return f"{package}=={installed(package).partition('+')[0]}"


def _answering(bundle: Path) -> tuple[str, ...]:
    """The packages that the model itself is answered with."""
    if (bundle / "model" / SERVING_GRAPH).is_file():
        return ("onnxruntime",)
    framework = json.loads((bundle / "manifest.json").read_bytes())["framework"]
    return FRAMEWORK_PACKAGES.get(framework, (framework,))


def _sometimes() -> Iterator[str]:
    """What only some Bentos need: hiredis, where the platform may have a Redis."""
    if find_spec("hiredis"):
        yield "hiredis"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, path)
