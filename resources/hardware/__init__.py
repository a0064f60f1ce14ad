"""What a machine computes on: found once, told as a value, with the reason for whatever is missing.

An accelerator is `cuda` (NVIDIA), `mps` (Apple's GPU by PyTorch), `mlx` (Apple's GPU by MLX, which shares its memory
with the CPU and is preferred there), or `cpu`. Nothing here imports torch or MLX: what a driver and the operating
system say is known in milliseconds, where importing torch takes seconds.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self, get_args

Kind = Literal["cuda", "mlx", "mps", "cpu"]
Accelerator = Literal["auto", "cuda", "mlx", "mps", "cpu"]
PREFERRED: tuple[Kind, ...] = get_args(Kind)
NEEDS: Mapping[Kind, str] = {"cuda": "torch", "mlx": "mlx", "mps": "torch"}  # the package that computes there
UNIFIED: tuple[Kind, ...] = ("mlx", "mps")  # CPU and GPU share one memory there
Build = Literal["cuda", "cpu"]  # what a package was built for


class UnknownAcceleratorError(ValueError):
    """An accelerator was named that is none."""

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"There is no accelerator {name!r} (known: {', '.join(get_args(Accelerator))}). Name one of these.")


class NoSuchDeviceError(RuntimeError):
    """An accelerator was required that this machine does not have, or that the trainer cannot use."""

    @classmethod
    def missing(cls, wanted: str, why: str, machine: Machine) -> Self:
        found = "; ".join(f"{one.kind}: {one}" for one in machine.devices.values())
        return cls(
            f"Accelerator {wanted!r} is required, and this machine has none: {why}. Found: {found}. "
            "Train on a machine that has one (compute=...), or let accelerator='auto' choose."
        )

    @classmethod
    def refused(cls, device: str, problem: str) -> Self:
        return cls(
            f"The driver names a device {device!r}, and it could not be used: {problem}. Look at the driver's and the "
            "library's versions, or train with accelerator='cpu'."
        )

    @classmethod
    def unusable(cls, wanted: str, who: str, usable: Sequence[str]) -> Self:
        return cls(
            f"{who} cannot use accelerator {wanted!r} (it can: {', '.join(usable)}). Name one of these, or 'auto'."
        )


@dataclass(frozen=True)
class Device:
    """One thing to compute on. `reason` says why it is not a better one; empty where it is the first choice.

    `memory_gb` is in GiB, of the GPU; where CPU and GPU share it (Apple Silicon), of the machine. `index` is as CUDA
    counts, among the GPUs that this process may see; `uuid` is the driver's own name of a GPU.
    """

    kind: Kind
    name: str
    memory_gb: float
    index: int = 0
    reason: str = ""
    uuid: str = ""

    @property
    def shares_memory(self) -> bool:
        """Whether what it takes is taken from the CPU, and from everything else that runs."""
        return self.kind in UNIFIED

    def __str__(self) -> str:
        memory = f"{self.memory_gb:g} GB" + (" shared by CPU and GPU" if self.shares_memory else "")
        return f"{self.name}, {memory}" + (f" ({self.reason})" if self.reason else "")


CPU = Device("cpu", "CPU", 0.0)  # for those who need none in particular


@dataclass(frozen=True)
class Machine:
    """What the operating system, the driver and the installed packages say.

    `nvidia` are the GPUs that the driver names, `no_nvidia` why it names none; `packages` are those that compute, as
    far as they are here, and what each was built for.
    """

    system: str
    arch: str
    chip: str
    memory_gb: float
    nvidia: tuple[Device, ...] = ()
    no_nvidia: str = ""
    packages: Mapping[str, Build] = field(default_factory=dict)

    @property
    def is_apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.arch == "arm64"

    @property
    def devices(self) -> dict[Kind, Device]:
        """What can be computed on here, the best first."""
        return {kind: device for kind in PREFERRED if isinstance(device := self.device(kind), Device)}

    def device(self, kind: Kind, needs: Mapping[Kind, str] = NEEDS) -> Device | str:
        """The first device of a kind, or why there is none; `needs` names the package that computes on each."""
        if kind == "cpu":
            return Device("cpu", self.chip, self.memory_gb)
        if kind == "cuda" and not self.nvidia:
            return self.no_nvidia
        if kind in UNIFIED and not self.is_apple_silicon:
            return f"this is {self.system} on {self.arch}, not macOS on Apple Silicon"
        if (package := needs[kind]) not in self.packages:
            return f"the package {package!r} is not installed"
        if kind == "cuda" and self.packages[package] != "cuda":
            return f"the package {package!r} that is installed was built without CUDA"
        return self.nvidia[0] if kind == "cuda" else Device(kind, self.chip, self.memory_gb)


def choose(
    wanted: str,
    usable: Sequence[Kind],
    machine: Machine,
    who: str = "The trainer",
    needs: Mapping[Kind, str] = NEEDS,
) -> Device:
    """The device to train on: the one that is required, or with "auto" the best that `usable`, in its order, allows.

    `needs` names the package that computes on each kind. Raises UnknownAcceleratorError, and NoSuchDeviceError before
    any work is lost; "auto" falls back, and says why.
    """
    if wanted not in get_args(Accelerator):
        raise UnknownAcceleratorError.of(wanted)
    if wanted != "auto":
        return _required(wanted, usable, machine, who, needs)
    refused: list[str] = []
    for kind in usable:
        device = machine.device(kind, needs)
        if isinstance(device, Device):
            return replace(device, reason="; ".join(refused))
        refused.append(f"no {kind}: {device}")
    raise NoSuchDeviceError.missing(" or ".join(usable), "; ".join(refused), machine)


def _required(wanted: str, usable: Sequence[Kind], machine: Machine, who: str, needs: Mapping[Kind, str]) -> Device:
    kind = next((kind for kind in usable if kind == wanted), None)
    if kind is None:
        raise NoSuchDeviceError.unusable(wanted, who, usable)
    device = machine.device(kind, needs)
    if isinstance(device, str):
        raise NoSuchDeviceError.missing(wanted, device, machine)
    return device


@cache
def this_machine() -> Machine:
    """The machine that this process runs on; asked once, since none of it changes while a process lives."""
    from resources.hardware.nvidia import gpus

    nvidia, why_not = gpus()
    return Machine(
        system=platform.system(),
        arch=platform.machine(),
        chip=_chip(),
        memory_gb=_memory_gb(),
        nvidia=nvidia,
        no_nvidia=why_not,
        packages=_packages(),
    )


def _packages() -> dict[str, Build]:
    """Those that compute, and whether they were built with CUDA; told by their files, not by importing them."""
    found: dict[str, Build] = {"mlx": "cpu"} if find_spec("mlx") else {}
    if torch := find_spec("torch"):
        (folder,) = torch.submodule_search_locations or ("",)
        found["torch"] = torch_build(Path(folder, "version.py").read_text())
    if find_spec("xgboost"):
        found["xgboost"] = "cpu" if _is_installed("xgboost-cpu") else "cuda"
    return found


def torch_build(text: str) -> Build:
    """By the line of torch/version.py that has the version of CUDA, or None."""
    told = re.search(r"^cuda\b[^=\n]*=\s*(\S+)", text, re.MULTILINE)
    return "cuda" if told and told[1] != "None" else "cpu"


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _memory_gb() -> float:
    """Of the machine, or what of it this container may take."""
    import psutil

    bound = Path("/sys/fs/cgroup/memory.max")
    told = bound.read_text().strip() if bound.exists() else "max"
    total = psutil.virtual_memory().total
    return gib(min(total, int(told)) if told.isdigit() else total)


def _chip() -> str:
    """The processor's name, as its maker sells it where the system tells."""
    if platform.system() == "Darwin":
        import subprocess

        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "Apple"
    told = Path("/proc/cpuinfo")
    names = [line for line in told.read_text().splitlines() if line.startswith("model name")] if told.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def gib(size: int) -> float:
    return round(size / 2**30, 1)
