"""The probe: what each kind of machine can compute on, what is chosen of it, and the reason for every fallback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from resources.hardware import (
    Build,
    Device,
    Kind,
    Machine,
    NoSuchDeviceError,
    UnknownAcceleratorError,
    choose,
    this_machine,
    torch_build,
)

TORCH: tuple[Kind, ...] = ("cuda", "mps", "cpu")
MLX: tuple[Kind, ...] = ("mlx", "cpu")
H200 = Device("cuda", "NVIDIA H200", 139.8)
BOTH: dict[str, Build] = {"torch": "cuda", "mlx": "cpu"}
LINUX = Machine("Linux", "x86_64", "Xeon", 64.0, (H200,), "", BOTH)
BARE = Machine("Linux", "x86_64", "Xeon", 64.0, (), "no NVIDIA driver answers (library not found)", BOTH)
MAC = Machine("Darwin", "arm64", "Apple M2 Pro", 32.0, (), "no NVIDIA driver answers", BOTH)
INTEL_MAC = Machine("Darwin", "x86_64", "Intel Core i7", 16.0, (), "no NVIDIA driver answers", BOTH)
NO_MLX = Machine("Darwin", "arm64", "Apple M2 Pro", 32.0, (), "no NVIDIA driver answers", {"torch": "cpu"})
NO_CUDA = Machine("Linux", "x86_64", "Xeon", 64.0, (H200,), "", {"torch": "cpu", "xgboost": "cuda"})


@pytest.mark.parametrize(
    ("machine", "kinds"),
    [
        (LINUX, ["cuda", "cpu"]),
        (BARE, ["cpu"]),
        (MAC, ["mlx", "mps", "cpu"]),
        (INTEL_MAC, ["cpu"]),
        (NO_MLX, ["mps", "cpu"]),
        (NO_CUDA, ["cpu"]),
    ],
)
def test_a_machine_has_what_its_system_driver_and_packages_give(machine: Machine, kinds: list[str]) -> None:
    """The best first: on Apple Silicon that is MLX, before PyTorch."""
    assert list(machine.devices) == kinds


def test_the_first_choice_needs_no_reason() -> None:
    assert choose("auto", TORCH, LINUX) == H200
    assert choose("auto", MLX, MAC).reason == ""


def test_a_fallback_says_why_of_everything_it_passed_over() -> None:
    device = choose("auto", TORCH, BARE)
    assert device.kind == "cpu"
    assert device.reason == (
        "no cuda: no NVIDIA driver answers (library not found); "
        "no mps: this is Linux on x86_64, not macOS on Apple Silicon"
    )
    assert choose("auto", MLX, NO_MLX).reason == "no mlx: the package 'mlx' is not installed"


def test_a_gpu_needs_a_package_that_was_built_for_it() -> None:
    """Which one is the trainer's to say: a PyTorch without CUDA is no reason to keep XGBoost from the GPU."""
    why = "no cuda: the package 'torch' that is installed was built without CUDA"
    assert choose("auto", ("cuda", "cpu"), NO_CUDA).reason == why
    assert choose("auto", ("cuda", "cpu"), NO_CUDA, needs={"cuda": "xgboost"}) == H200
    with pytest.raises(NoSuchDeviceError, match=r"'cuda' is required.*built without CUDA"):
        choose("cuda", ("cuda", "cpu"), NO_CUDA)


@pytest.mark.parametrize(
    ("line", "build"),
    [
        ("cuda: Optional[str] = '13.0'", "cuda"),
        ("cuda: Optional[str] = None", "cpu"),
        ("cuda = None", "cpu"),
        ("hip: Optional[str] = '6.4'", "cpu"),
    ],
)
def test_what_torch_was_built_for_is_read_from_its_own_file(line: str, build: Build) -> None:
    """As its wheels have it, without importing it, which takes seconds."""
    text = f"from typing import Optional\n\n__all__ = ['debug', 'cuda', 'hip']\n__version__ = '2.13.0'\n{line}\n"
    assert torch_build(text) == build


def test_memory_that_cpu_and_gpu_share_is_told_as_shared() -> None:
    """Else 32 GB read as if the GPU had them for itself."""
    shared, own = choose("mlx", MLX, MAC), choose("cuda", TORCH, LINUX)
    assert str(shared) == "Apple M2 Pro, 32 GB shared by CPU and GPU"
    assert str(own) == "NVIDIA H200, 139.8 GB"


def test_what_is_required_and_missing_fails_and_says_what_was_found() -> None:
    with pytest.raises(NoSuchDeviceError, match=r"'cuda' is required.*library not found.*Found: cpu: Xeon, 64 GB"):
        choose("cuda", TORCH, BARE)


def test_what_a_trainer_cannot_use_is_refused_also_where_the_machine_has_it() -> None:
    with pytest.raises(NoSuchDeviceError, match=r"LightGBM cannot use accelerator 'cuda' \(it can: cpu\)"):
        choose("cuda", ("cpu",), LINUX, "LightGBM")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UnknownAcceleratorError, match="known: auto, cuda, mlx, mps, cpu"):
        choose("tpu", TORCH, LINUX)


def test_this_machine_is_probed_without_importing_a_framework() -> None:
    """In a process of its own: importing torch takes seconds, and the daemon asks too."""
    code = (
        "import sys; from resources.hardware import this_machine; m = this_machine();"
        "assert m.devices['cpu'].memory_gb > 0.5 and m.chip, m;"
        "assert not {'torch', 'mlx', 'mlx.core', 'xgboost'} & set(sys.modules), 'a framework was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert this_machine().devices["cpu"].name == this_machine().chip


def test_what_is_said_of_this_machine_is_what_its_packages_say() -> None:
    import torch

    built = "cuda" if torch.version.cuda else "cpu"
    assert this_machine().packages["torch"] == built
    assert (this_machine().packages["mlx"], this_machine().packages["xgboost"]) == ("cpu", "cuda")
