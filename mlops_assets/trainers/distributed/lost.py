"""What goes wrong with several workers, and not with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from mlops_assets.trainers.distributed.job import Raised

RESTARTS = 3


class TooManyWorkersError(ValueError):
    """A fit asks for more workers than there is room for."""

    @classmethod
    def of(cls, workers: int, each: int, what: str, there: int, where: str) -> Self:
        return cls(
            f"A fit by {workers} workers needs {workers * each} {what} ({each} each), and {where} has {there}. "
            "Give the trainer fewer `workers`, or a larger machine or cluster (compute=...)."
        )


class LostWorkersError(RuntimeError):
    """The workers of a fit died, or raised, at every attempt."""

    @classmethod
    def of(cls, workers: int, causes: list[str], raised: list[Raised]) -> Self:
        told = f"\nWhat worker {raised[0].rank} raised:\n{raised[0].trace}" if raised else ""
        return cls(
            f"A fit by {workers} workers was lost (they begin again {RESTARTS} times): {'; '.join(causes)}. "
            f"Mend the cause and train again: it goes on from the last checkpoint, where the pipeline keeps them.{told}"
        )


class WorkerRaisedError(RuntimeError):
    """The fit itself raised in a worker: another attempt would come to the same."""

    @classmethod
    def of(cls, raised: Raised) -> Self:
        return cls(f"Worker {raised.rank} raised {raised.kind}: {raised.message}\nWhere it ran:\n{raised.trace}")
