"""What NVIDIA's management library says: the GPUs that this process may see, and how busy one is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from resources.hardware import Device, gib

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus(environment: Mapping[str, str] = os.environ) -> tuple[tuple[Device, ...], str]:
    """The GPUs in the order in which CUDA counts them here, or why there are none."""
    if find_spec("pynvml") is None:
        return (), "the package 'nvidia-ml-py' is not installed"
    import pynvml

    try:
        pynvml.nvmlInit()
        there = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = visible(environment.get(VISIBLE), [_text(pynvml.nvmlDeviceGetUUID(one)) for one in there])
        found = tuple(_device(index, uuid) for index, uuid in enumerate(uuids))
    except pynvml.NVMLError as problem:
        return (), f"no NVIDIA driver answers ({problem})"
    if there and not found:
        return (), f"{VISIBLE}={environment[VISIBLE]!r} hides every GPU; a cluster gives none to who asks for none"
    return found, "" if found else "the NVIDIA driver names no GPU"


def visible(told: str | None, uuids: Sequence[str]) -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; as CUDA does, nothing after a word that names none.

    A scheduler (Ray, Kubernetes, Slurm) gives a worker its GPUs by this variable, by number or by UUID.
    """
    if told is None:
        return list(uuids)
    found: list[str] = []
    for word in (one.strip() for one in told.split(",")):
        if word.isdigit() and int(word) < len(uuids):
            found.append(uuids[int(word)])
        elif word.startswith("MIG-"):  # a slice of a GPU, which has a name of its own
            found.append(word)
        elif word and (named := [uuid for uuid in uuids if uuid.startswith(word)]):
            found += named[:1]
        else:
            break
    return found


def load(device: Device) -> tuple[float | None, float]:
    """How busy the GPU is, in percent (None of a slice, which has no such number), and its used memory in GiB."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
    used = float(pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**30)
    return None if device.uuid.startswith("MIG-") else float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu), used


def _device(index: int, uuid: str) -> Device:
    import pynvml

    handle: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    memory = gib(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Device("cuda", _text(pynvml.nvmlDeviceGetName(handle)), memory, index, uuid=uuid)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
