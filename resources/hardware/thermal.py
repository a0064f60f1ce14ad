"""How hot the machine is, in the four steps of Apple's scale, wherever it can be read without a privilege.

`nominal`, `fair`, `serious` (the processor is slowed down), `critical`. On a Mac the system's own notification key
says it, then `pmset`; `powermetrics` only where the process may run it. NVIDIA's driver names why a GPU is slowed.
Elsewhere the sensors' own marks for high and critical count. Where nothing can be read the state is unknown, and
nothing should be decided by it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from resources.hardware.asking import Ask, output

Level = Literal["nominal", "fair", "serious", "critical"]
LEVELS: tuple[Level, ...] = get_args(Level)
# By the number of com.apple.system.thermalpressurelevel; trapping and sleeping both mean that it is about to stop.
PRESSURE: tuple[Level, ...] = ("nominal", "fair", "serious", "critical", "critical")
WORDS: Mapping[str, Level] = dict(zip(("nominal", "moderate", "heavy", "trapping", "sleeping"), PRESSURE, strict=True))
NOTIFIED = ("/usr/bin/notifyutil", "-g", "com.apple.system.thermalpressurelevel")
PMSET = ("/usr/bin/pmset", "-g", "therm")
POWERMETRICS = ("/usr/bin/sudo", "-n", "/usr/bin/powermetrics", "--samplers", "thermal", "-n", "1", "-i", "100")
WARM_C = 10.0  # this much below what a sensor calls high is warm already
# What `pmset` calls its warnings (IOPM.h); 255 is unknown, and what a platform adds lies between 100 and that.
WARNINGS: Mapping[int, Level] = {0: "nominal", 5: "serious", 10: "critical", 100: "serious", 110: "critical"}


@dataclass(frozen=True)
class Thermal:
    """One reading: its level, who said it, and what exactly was said."""

    level: Level
    source: str
    said: str

    def __str__(self) -> str:
        return f"{self.level} ({self.source}: {self.said})"

    @property
    def step(self) -> int:
        """0 for nominal to 3 for critical."""
        return LEVELS.index(self.level)


def thermal() -> Thermal | None:
    """The worst of what can be read here; None where nothing can."""
    readings = [*_apple(output)] if platform.system() == "Darwin" else [*_sensors(_temperatures()), *_nvidia()]
    return max(readings, key=lambda one: one.step, default=None)


def _apple(ask: Ask) -> Iterator[Thermal]:
    """The first that answers: they tell the same, and each needs more than the one before."""
    for command, read in ((NOTIFIED, notified), (PMSET, pmset), (POWERMETRICS, powermetrics)):
        told = ask(command)
        if told is not None and (found := read(told)) is not None:
            yield found
            return


def notified(text: str) -> Thermal | None:
    """`com.apple.system.thermalpressurelevel 2`, as `notifyutil` prints it."""
    found = re.search(r"thermalpressurelevel\s+(\d+)", text)
    number = int(found[1]) if found else -1
    return Thermal(PRESSURE[number], "macOS", f"thermal pressure {number}") if 0 <= number < len(PRESSURE) else None


def pmset(text: str) -> Thermal | None:
    """The worse of what `pmset -g therm` says of a warning and of the processor's speed.

    An Apple Silicon that was never hot says so in notes.
    """
    told = [found for found in (_warning(text), _speed(text)) if found]
    if told:
        return max(told, key=lambda one: one.step)
    quiet = "No thermal warning level" in text and "No performance warning level" in text
    return Thermal("nominal", "pmset", "no warning was recorded") if quiet else None


def _warning(text: str) -> Thermal | None:
    """The last `Thermal Warning Level = 5`; a level that a platform adds is at least serious."""
    found = re.findall(r"Thermal Warning Level = (\d+)", text)
    number = int(found[-1]) if found else 255
    if number >= 255:
        return None
    level = WARNINGS.get(number, "serious" if number >= 100 else "fair")
    return Thermal(level, "pmset", f"thermal warning level {number}")


def _speed(text: str) -> Thermal | None:
    """The lower of the speed and the share of its time that the processor is left, in percent."""
    found = [int(limit) for limit in re.findall(r"CPU_(?:Speed|Scheduler)_Limit\s*=\s*(\d+)", text)]
    if not found:
        return None
    limit = min(found)
    level: Level = "nominal" if limit >= 100 else "fair" if limit >= 90 else "serious" if limit >= 60 else "critical"
    return Thermal(level, "pmset", f"the processor runs at {limit} % of its speed")


def powermetrics(text: str) -> Thermal | None:
    """The pressure of the last sample of `powermetrics --samplers thermal`."""
    found = re.findall(r"Current pressure level:\s*(\w+)", text)
    word = found[-1].lower() if found else ""
    return Thermal(WORDS[word], "powermetrics", f"pressure {word}") if word in WORDS else None


def _sensors(temperatures: Mapping[str, Sequence[Any]]) -> Iterator[Thermal]:
    """Sensors that name what is high for them; a temperature alone says nothing."""
    for chip, sensors in temperatures.items():
        for one in sensors:
            if one.high is None and one.critical is None:
                continue
            critical = one.critical if one.critical is not None else one.high + WARM_C
            high = one.high if one.high is not None else one.critical - WARM_C
            yield Thermal(_by_marks(one.current, high, critical), chip, f"{one.label or chip} at {one.current:.0f} C")


def _by_marks(current: float, high: float, critical: float) -> Level:
    if current >= critical:
        return "critical"
    if current >= high:
        return "serious"
    return "fair" if current >= high - WARM_C else "nominal"


def _nvidia() -> Iterator[Thermal]:
    """Why each GPU's clock is held back, if it is for heat."""
    if find_spec("pynvml") is None:
        return
    import pynvml

    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
            degrees = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            yield throttled(index, reasons, degrees)
    except pynvml.NVMLError:  # no driver, or one that does not tell: nothing can be read, which is what None means
        return


def throttled(index: int, reasons: int, degrees: float) -> Thermal:
    """NVML's reasons of a slowed clock: by software for heat is serious, by hardware critical."""
    software, hardware = 0x20, 0x40  # nvmlClocksEventReasonSwThermalSlowdown, nvmlClocksThrottleReasonHwThermalSlowdown
    level: Level = "critical" if reasons & hardware else "serious" if reasons & software else "nominal"
    return Thermal(level, f"GPU {index}", f"{degrees:.0f} C" + ("" if level == "nominal" else ", clock held back"))


def _temperatures() -> Mapping[str, Sequence[Any]]:
    import psutil

    read = getattr(psutil, "sensors_temperatures", None)  # Linux and FreeBSD alone
    return read() if read else {}
