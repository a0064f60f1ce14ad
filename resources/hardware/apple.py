"""Apple Silicon's GPU: how busy it is, what it holds, and how much of the memory that it shares it may take."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from resources.hardware import Device
from resources.hardware.asking import Ask, output

IOREG = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
POWERMETRICS = ("/usr/bin/sudo", "-n", "/usr/bin/powermetrics", "--samplers", "gpu_power", "-n", "1", "-i", "100")
# Of the memory that CPU and GPU share: about what Metal recommends as a working set. MLX by itself would go to one and
# a half times that, which is more than there is: the machine would swap, and so would everything else on it.
SHARE = 0.7


def gpu_percent(ask: Ask = output) -> float | None:
    """How busy the GPU is: by its driver's statistics, which need no privilege, else by powermetrics."""
    for command, read in ((IOREG, ioreg), (POWERMETRICS, powermetrics)):
        told = ask(command)
        if told is not None and (found := read(told)) is not None:
            return found
    return None


def ioreg(text: str) -> float | None:
    """The `"Device Utilization %"=16` of an accelerator's statistics; of several, the busiest."""
    return max((float(found) for found in re.findall(r'"Device Utilization %"=(\d+)', text)), default=None)


def powermetrics(text: str) -> float | None:
    """The residency of the last sample: `GPU HW active residency:  12.50% (396 MHz: 12% ...)`."""
    found: Sequence[str] = re.findall(r"GPU (?:HW )?active residency:\s*([\d.]+)%", text)
    return float(found[-1]) if found else None


def held_gb(device: Device) -> float | None:
    """The most that this process held on the GPU so far, in GiB; None where its library is not in use."""
    name, verb = {"mlx": ("mlx.core", "get_peak_memory"), "mps": ("torch.mps", "driver_allocated_memory")}[device.kind]
    library: Any = sys.modules.get(name)
    return float(getattr(library, verb)() / 2**30) if library else None


def forget_peak(device: Device) -> None:
    """Count anew what is held: one process does many trainings."""
    if device.kind == "mlx" and (library := sys.modules.get("mlx.core")):
        reset: Callable[[], None] = library.reset_peak_memory
        reset()


def leave_room(device: Device, share: float = SHARE) -> None:
    """Bound what the GPU takes of the memory that it shares; nothing where it has its own."""
    if device.kind == "mlx":
        import mlx.core as mx

        mx.set_memory_limit(int(share * device.memory_gb * 2**30))
    elif device.kind == "mps":
        import torch

        torch.mps.set_per_process_memory_fraction(1.0)  # of what Metal recommends, by default it goes beyond
