"""What a piece of work took of the machine: a thread looks once a second, and is gone when the work is done.

Peak memory and utilisation of this process and its children, of the GPU where NVIDIA's driver tells, and the worst
thermal state. The numbers are for a run's metrics, so each has its unit in its name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from resources.hardware import Device
from resources.hardware.thermal import LEVELS, thermal

EVERY_SECONDS = 1.0
THERMAL_EVERY = 10  # looks; asking a Mac starts a process

logger = logging.getLogger(__name__)


@dataclass
class Usage:
    """What was seen so far. CPU is in percent of one core, summed over processes; memory in GiB."""

    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    cpu_seconds: float = 0.0
    gpu_percent: list[float] = field(default_factory=list)
    gpu_memory_gb: float = 0.0
    hottest: int = -1

    @property
    def metrics(self) -> dict[str, float]:
        """Names and numbers for a run; what could not be read is left out."""
        told = {"hardware/seconds": self.seconds, "hardware/peak_memory_gb": self.peak_memory_gb}
        if self.seconds:
            told["hardware/cpu_percent"] = 100 * self.cpu_seconds / self.seconds
        if self.gpu_percent:
            told["hardware/gpu_percent"] = sum(self.gpu_percent) / len(self.gpu_percent)
            told["hardware/gpu_peak_memory_gb"] = self.gpu_memory_gb
        if self.hottest >= 0:
            told["hardware/thermal_step"] = float(self.hottest)
        return told

    @property
    def thermal(self) -> str:
        return LEVELS[self.hottest] if self.hottest >= 0 else "unknown"


@contextmanager
def metered(device: Device) -> Iterator[Usage]:
    """Yields what the block takes; it is complete when the block has ended."""
    import psutil

    usage, done, me = Usage(), threading.Event(), psutil.Process()
    began, spent = time.monotonic(), _cpu_seconds(me)

    def look() -> None:
        looks = 0
        while True:
            _look(usage, me, device, with_heat=looks % THERMAL_EVERY == 0)
            looks += 1
            if done.wait(EVERY_SECONDS):
                return

    thread = threading.Thread(target=look, name="hardware-usage", daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        done.set()
        thread.join()
        usage.seconds = time.monotonic() - began
        usage.cpu_seconds = _cpu_seconds(me) - spent


def _look(usage: Usage, me: Any, device: Device, *, with_heat: bool) -> None:
    usage.peak_memory_gb = max(usage.peak_memory_gb, _memory_gb(me))
    if device.kind == "cuda":
        _look_at_gpu(usage, device.index)
    if with_heat and (heat := thermal()) is not None:
        usage.hottest = max(usage.hottest, heat.step)


def _memory_gb(me: Any) -> float:
    """Of this process and its children; a child that ends between two lines counts as nothing."""
    import psutil

    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return float(total / 2**30)


def _cpu_seconds(me: Any) -> float:
    """User and system, with those children that have ended."""
    times = me.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _look_at_gpu(usage: Usage, index: int) -> None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        usage.gpu_percent.append(float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        used = pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30
        usage.gpu_memory_gb = max(usage.gpu_memory_gb, used)
    except pynvml.NVMLError as problem:  # the training goes on without its numbers
        logger.warning("GPU %d could not be looked at: %s", index, problem)
