"""A net that names no framework: the device decides who fits it, and the model is that framework's own, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.trainers import Trainer, native_predictor, net, trainer_named, trainers
from resources.hardware import CPU, Build, Device, Kind, Machine

SMALL: dict[str, Any] = {"hidden": [8], "epochs": 4, "batch_size": 64}
IMAGE: dict[str, Any] = {**SMALL, "image": [4, 4], "channels": [3]}
GPU = Device("cuda", "NVIDIA H200", 139.8)
BOTH: dict[str, Build] = {"torch": "cuda", "mlx": "cpu"}
MAC = Machine("Darwin", "arm64", "Apple M2 Pro", 32.0, (), "no NVIDIA driver answers", BOTH)
SERVER = Machine("Linux", "x86_64", "Xeon", 64.0, (GPU,), "", BOTH)
BARE = Machine("Linux", "x86_64", "Xeon", 64.0, (), "no NVIDIA driver answers", BOTH)
NETS = {name: IMAGE if "Image" in name else SMALL for name in trainers() if name.startswith("Net")}


def rows(trainer: Trainer, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 16)).astype(np.float32)
    kinds = {"classification": x[:, 0] > 0, "multiclass": (x[:, 0] > 0) + (x[:, 1] > 0), "regression": x[:, 0]}
    return x, np.asarray(kinds[trainer.task], dtype=np.float64)


def files(trainer: Trainer, device: Device, directory: Path) -> dict[str, bytes]:
    directory.mkdir()
    trainer.write(trainer.fit(*rows(trainer), None, None, {}, 3, device=device), directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("machine", "kind", "framework"), [(MAC, "mlx", "MLX"), (SERVER, "cuda", "Torch"), (BARE, "cpu", "Torch")]
)
@pytest.mark.parametrize("name", NETS)
def test_the_machine_decides(name: str, machine: Machine, kind: Kind, framework: str) -> None:
    """MLX on Apple Silicon, before PyTorch there; PyTorch on CUDA and on every other CPU."""
    trainer = trainer_named(name, **NETS[name])
    assert isinstance(trainer, net._Net)
    device = trainer.device("auto", machine)
    assert device.kind == kind
    chosen = trainer.by(device)
    assert (type(chosen).__name__, chosen.params) == (name.replace("Net", framework), trainer.params)


def test_apples_gpu_may_be_had_by_pytorch_too() -> None:
    """For who requires it, or has no MLX there: the reason is said."""
    trainer = trainer_named("NetClassifier")
    assert isinstance(trainer, net._Net)
    assert type(trainer.by(trainer.device("mps", MAC))).__name__ == "TorchClassifier"
    only_torch = Machine("Darwin", "arm64", "Apple M2 Pro", 32.0, (), "none", {"torch": "cpu"})
    device = trainer.device("auto", only_torch)
    assert (device.kind, device.reason) == ("mps", "no cuda: none; no mlx: the package 'mlx' is not installed")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("device", "framework"), [(CPU, "Torch"), (Device("mlx", "Apple M2 Pro", 32.0), "MLX")])
def test_its_model_is_the_frameworks_own(name: str, device: Device, framework: str, tmp_path: Path) -> None:
    """The same bytes; and either library loads them, whichever is installed there."""
    own = trainer_named(name.replace("Net", framework), **NETS[name])
    assert files(trainer_named(name, **NETS[name]), device, tmp_path / "net") == files(own, device, tmp_path / "own")
    x = rows(own)[0]
    predicted = [native_predictor(library, tmp_path / "net")(x) for library in ("net", "torch", "mlx")]
    assert np.ptp(predicted[0]) > 0
    for other in predicted[1:]:
        np.testing.assert_allclose(other, predicted[0], atol=1e-5)


def test_where_only_one_is_installed_that_one_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without PyTorch MLX fits on the CPU, and loads what was fitted."""
    trainer = trainer_named("NetRegressor", **SMALL)
    assert isinstance(trainer, net._Net)
    monkeypatch.setattr(net, "find_spec", lambda name: None if name == "torch" else name)
    assert type(trainer.by(CPU)).__name__ == "MLXRegressor"
    trainer.save(trainer.fit(*rows(trainer), None, None, {}, 3), tmp_path)
    predicted = net.load(tmp_path)(rows(trainer)[0])
    np.testing.assert_array_equal(predicted, native_predictor("mlx", tmp_path)(rows(trainer)[0]))
