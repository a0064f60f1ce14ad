"""What a piece of work took: the numbers are of that work, and the watching ends with it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from resources.hardware import Device, this_machine
from resources.hardware.usage import EVERY_SECONDS, metered


def test_a_busy_block_that_holds_memory_is_seen() -> None:
    """300 MB and more than a second of one core, in the numbers."""
    cpu = this_machine().devices["cpu"]
    with metered(cpu) as idle:
        pass
    with metered(cpu) as busy:
        held = np.ones(300 * 2**20, dtype=np.uint8)
        until = time.process_time() + 1.2 * EVERY_SECONDS
        while time.process_time() < until:
            pass
    assert held.sum() > 0
    told = busy.metrics
    assert told["hardware/peak_memory_gb"] > idle.metrics["hardware/peak_memory_gb"] + 0.25
    assert busy.cpu_seconds >= EVERY_SECONDS
    assert told["hardware/cpu_percent"] == pytest.approx(100 * busy.cpu_seconds / busy.seconds)
    assert "hardware/gpu_percent" not in told  # a CPU has none


def test_a_gpu_that_cannot_be_looked_at_is_said_once_and_costs_no_training(caplog: pytest.LogCaptureFixture) -> None:
    """The driver may be gone for a moment, or a slice tell nothing: the other numbers are still there."""
    gone = Device("cuda", "a GPU that is not there", 80.0, uuid="GPU-none")
    with metered(gone) as usage:
        time.sleep(1.5 * EVERY_SECONDS)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a GPU that is not there, 80 GB could not be looked at, and is not again" in caplog.text
    assert usage.metrics["hardware/peak_memory_gb"] > 0 and "hardware/gpu_percent" not in usage.metrics


def test_the_watching_ends_with_the_work_also_when_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), metered(this_machine().devices["cpu"]) as usage:
        raise ZeroDivisionError
    assert usage.seconds > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "hardware-usage"]
