"""What a piece of work took of the machine: a thread looks once a second, and is gone when the work is done.

Peak memory and utilisation of this process and its children, of the GPU where its driver tells, and the worst
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

from resources.hardware import Device, apple, nvidia
from resources.hardware.thermal import LEVELS, thermal

EVERY_SECONDS = 1.0
ASKED_EVERY = 10  # looks; asking a Mac starts a process

logger = logging.getLogger(__name__)


@dataclass
class Usage:
    """What was seen so far. CPU is in percent of one core, summed over processes; memory in GiB.

    An NVIDIA GPU's memory and load are of the whole GPU, of all that run on it; on Apple Silicon the memory is what
    this process held there, of the memory that CPU and GPU share.
    """

    seconds: float = 0.0
    peak_memory_gb: float = 0.0
    cpu_seconds: float = 0.0
    gpu_percent: list[float] = field(default_factory=list)
    gpu_memory_gb: float = 0.0
    hottest: int = -1
    no_gpu_told: bool = False

    @property
    def metrics(self) -> dict[str, float]:
        """Names and numbers for a run; what could not be read is left out."""
        told = {"hardware/seconds": self.seconds, "hardware/peak_memory_gb": self.peak_memory_gb}
        if self.seconds:
            told["hardware/cpu_percent"] = 100 * self.cpu_seconds / self.seconds
        if self.gpu_percent:
            told["hardware/gpu_percent"] = sum(self.gpu_percent) / len(self.gpu_percent)
        if self.gpu_memory_gb:
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
    if device.shares_memory:
        apple.forget_peak(device)
    began, spent = time.monotonic(), _cpu_seconds(me)

    def look() -> None:
        looks = 0
        while True:
            _look(usage, me, device, ask=looks % ASKED_EVERY == 0)
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
        _look_at_memory(usage, me, device)  # work that was over before the first look held something too


def _look(usage: Usage, me: Any, device: Device, *, ask: bool) -> None:
    _look_at_memory(usage, me, device)
    if device.kind == "cuda":
        _look_at_nvidia(usage, device)
    elif ask and device.shares_memory and (busy := apple.gpu_percent()) is not None:
        usage.gpu_percent.append(busy)
    if ask and (heat := thermal()) is not None:
        usage.hottest = max(usage.hottest, heat.step)


def _look_at_memory(usage: Usage, me: Any, device: Device) -> None:
    usage.peak_memory_gb = max(usage.peak_memory_gb, _memory_gb(me))
    if device.shares_memory and (held := apple.held_gb(device)) is not None:
        usage.gpu_memory_gb = max(usage.gpu_memory_gb, held)


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


def _look_at_nvidia(usage: Usage, device: Device) -> None:
    import pynvml

    if usage.no_gpu_told:
        return
    try:
        busy, used = nvidia.load(device)
    except pynvml.NVMLError as problem:  # the training goes on without its numbers
        logger.warning("%s could not be looked at, and is not again: %s", device, problem)
        usage.no_gpu_told = True
        return
    usage.gpu_percent += [] if busy is None else [busy]
    usage.gpu_memory_gb = max(usage.gpu_memory_gb, used)
