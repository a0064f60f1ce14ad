"""What a machine computes on: found once, told as a value, with the reason for whatever is missing.

An accelerator is `cuda` (NVIDIA), `mps` (Apple's GPU by PyTorch), `mlx` (Apple's GPU by MLX, which shares its memory
with the CPU and is preferred there), or `cpu`. Nothing here imports torch or MLX: what a driver and the operating
system say is known in milliseconds, where importing torch takes seconds.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self, get_args

Kind = Literal["cuda", "mlx", "mps", "cpu"]
Accelerator = Literal["auto", "cuda", "mlx", "mps", "cpu"]
PREFERRED: tuple[Kind, ...] = get_args(Kind)
NEEDS: Mapping[Kind, str] = {"cuda": "torch", "mlx": "mlx", "mps": "torch"}  # the package that computes there


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
    def unusable(cls, wanted: str, who: str, usable: Sequence[str]) -> Self:
        return cls(
            f"{who} cannot use accelerator {wanted!r} (it can: {', '.join(usable)}). Name one of these, or 'auto'."
        )


@dataclass(frozen=True)
class Device:
    """One thing to compute on. `reason` says why it is not a better one; empty where it is the first choice.

    `memory_gb` is in GiB, of the GPU; where CPU and GPU share it (Apple Silicon), of the machine.
    """

    kind: Kind
    name: str
    memory_gb: float
    index: int = 0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gb:g} GB" + (f" ({self.reason})" if self.reason else "")


CPU = Device("cpu", "CPU", 0.0)  # for those who need none in particular


@dataclass(frozen=True)
class Machine:
    """What the operating system, the driver and the installed packages say.

    `nvidia` are the GPUs that the driver names, `no_nvidia` why it names none; `packages` those of NEEDS that are here.
    """

    system: str
    arch: str
    chip: str
    memory_gb: float
    nvidia: tuple[Device, ...] = ()
    no_nvidia: str = ""
    packages: frozenset[str] = field(default_factory=frozenset)

    @property
    def is_apple_silicon(self) -> bool:
        return self.system == "Darwin" and self.arch == "arm64"

    @property
    def devices(self) -> dict[Kind, Device]:
        """What can be computed on here, the best first."""
        return {kind: device for kind in PREFERRED if isinstance(device := self.device(kind), Device)}

    def device(self, kind: Kind) -> Device | str:
        """The first device of a kind, or why there is none."""
        if kind == "cpu":
            return Device("cpu", self.chip, self.memory_gb)
        if kind == "cuda" and not self.nvidia:
            return self.no_nvidia
        if kind in ("mps", "mlx") and not self.is_apple_silicon:
            return f"this is {self.system} on {self.arch}, not macOS on Apple Silicon"
        if NEEDS[kind] not in self.packages:
            return f"the package {NEEDS[kind]!r} is not installed"
        return self.nvidia[0] if kind == "cuda" else Device(kind, self.chip, self.memory_gb)


def choose(wanted: str, usable: Sequence[Kind], machine: Machine, who: str = "The trainer") -> Device:
    """The device to train on: the one that is required, or with "auto" the best that `usable`, in its order, allows.

    Raises UnknownAcceleratorError, and NoSuchDeviceError before any work is lost; "auto" falls back, and says why.
    """
    if wanted not in get_args(Accelerator):
        raise UnknownAcceleratorError.of(wanted)
    if wanted != "auto":
        return _required(wanted, usable, machine, who)
    refused: list[str] = []
    for kind in usable:
        device = machine.device(kind)
        if isinstance(device, Device):
            return Device(device.kind, device.name, device.memory_gb, device.index, "; ".join(refused))
        refused.append(f"no {kind}: {device}")
    raise NoSuchDeviceError.missing(" or ".join(usable), "; ".join(refused), machine)


def _required(wanted: str, usable: Sequence[Kind], machine: Machine, who: str) -> Device:
    kind = next((kind for kind in usable if kind == wanted), None)
    if kind is None:
        raise NoSuchDeviceError.unusable(wanted, who, usable)
    device = machine.device(kind)
    if isinstance(device, str):
        raise NoSuchDeviceError.missing(wanted, device, machine)
    return device


@cache
def this_machine() -> Machine:
    """The machine that this process runs on; asked once, since none of it changes while a process lives."""
    import psutil

    nvidia, why_not = _nvidia()
    return Machine(
        system=platform.system(),
        arch=platform.machine(),
        chip=_chip(),
        memory_gb=_gib(psutil.virtual_memory().total),
        nvidia=nvidia,
        no_nvidia=why_not,
        packages=frozenset(name for name in set(NEEDS.values()) if find_spec(name)),
    )


def _nvidia() -> tuple[tuple[Device, ...], str]:
    """The GPUs that NVIDIA's management library names, or why there are none."""
    if find_spec("pynvml") is None:
        return (), "the package 'nvidia-ml-py' is not installed"
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        return (), f"no NVIDIA driver answers ({problem})"
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return (), "CUDA_VISIBLE_DEVICES hides every GPU"
    gpus = tuple(
        Device("cuda", _text(pynvml.nvmlDeviceGetName(one)), _gib(pynvml.nvmlDeviceGetMemoryInfo(one).total), index)
        for index, one in enumerate(handles)
    )
    return gpus, "" if gpus else "the NVIDIA driver names no GPU"


def _chip() -> str:
    """The processor's name, as its maker sells it where the system tells."""
    if platform.system() == "Darwin":
        import subprocess

        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "Apple"
    told = Path("/proc/cpuinfo")
    names = [line for line in told.read_text().splitlines() if line.startswith("model name")] if told.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
