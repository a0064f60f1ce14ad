"""Who may wait: a bound on what one serving process has taken and not yet answered.

A request over the bound is refused at once, with 429, while it still costs nothing. One that waited longer than its
deadline is not answered either: its caller has gone, and the work would make the next ones late too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import perf_counter

from mlops_assets.serving.wire.form import InvalidRequestError

REQUESTS = 256  # requests taken at a time; one row takes well under a millisecond, a full queue a fifth of a second
BODY_BYTES = 256 * 2**20  # of all bodies in memory at a time
RETRY_SECONDS = 1


class OverloadedError(InvalidRequestError):
    """The process has taken as much as it may."""

    @classmethod
    def by(cls, what: str) -> OverloadedError:
        problem = InvalidRequestError.of(
            f"the queue is full ({what})", f"Ask again in {RETRY_SECONDS} s, or send more rows in fewer requests."
        )
        return cls(problem.problems, 429)


class DeadlineError(InvalidRequestError):
    """A request waited longer than it may."""

    @classmethod
    def after(cls, waited_ms: float, deadline_ms: float) -> DeadlineError:
        problem = InvalidRequestError.of(
            f"it waited {waited_ms:.0f} ms, longer than its deadline of {deadline_ms:.0f} ms",
            "Ask again, or give it more time in the header x-deadline-ms.",
        )
        return cls(problem.problems, 504)


@dataclass(slots=True)
class Admission:
    """The queue of one process, kept by its event loop alone."""

    requests: int = field(default_factory=lambda: int(os.environ.get("MLOPS_ENDPOINT_QUEUE", REQUESTS)))
    body_bytes: int = BODY_BYTES
    depth: int = 0
    held: int = 0

    def enter(self) -> None:
        """Take one more request; OverloadedError where there is no room. Who asked must leave, taken or not."""
        self.depth += 1
        if self.depth > self.requests:
            raise OverloadedError.by(f"{self.requests} requests")

    def hold(self, size: int) -> None:
        """Keep a body of so many bytes, until `leave`."""
        if self.held + size > self.body_bytes:
            raise OverloadedError.by(f"{self.held} bytes")
        self.held += size

    def leave(self, size: int) -> None:
        """A request is over; `size` is what it held."""
        self.depth -= 1
        self.held -= size


def in_time(arrived: float, deadline_ms: float) -> None:
    """DeadlineError for a request that arrived (by `perf_counter`) longer ago than its deadline."""
    waited_ms = (perf_counter() - arrived) * 1000
    if waited_ms > deadline_ms:
        raise DeadlineError.after(waited_ms, deadline_ms)
