"""Which GPUs a process may see: by the variable that schedulers set, as CUDA itself reads it."""

from __future__ import annotations

import pytest

from resources.hardware.nvidia import gpus, visible

UUIDS = ["GPU-1a2b", "GPU-3c4d", "GPU-5e6f"]


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        (None, UUIDS),
        ("", []),
        ("2,0", ["GPU-5e6f", "GPU-1a2b"]),
        ("1", ["GPU-3c4d"]),
        ("GPU-5e,GPU-1a2b", ["GPU-5e6f", "GPU-1a2b"]),
        ("0, 2", ["GPU-1a2b", "GPU-5e6f"]),
        ("1,7,0", ["GPU-3c4d"]),
        ("-1,0", []),
        ("MIG-9a8b", ["MIG-9a8b"]),
        ("NoDevFiles", []),
    ],
)
def test_a_worker_sees_the_gpus_it_was_given_in_their_order(told: str | None, seen: list[str]) -> None:
    """The first of them is cuda:0 there, whatever number the driver gives it; a word that names none ends the list."""
    assert visible(told, UUIDS) == seen


def test_a_machine_without_a_driver_says_so() -> None:
    """Where there is one, it names its GPUs; never both, never neither."""
    found, why_not = gpus({})
    assert bool(found) is not bool(why_not)
    assert all(gpu.kind == "cuda" and gpu.uuid and gpu.memory_gb > 0 for gpu in found)
