"""When boosting stops, told from the scores of its rounds alone: so that a checkpoint need hold no other state."""

from __future__ import annotations

from collections.abc import Sequence


def best_round(scores: Sequence[float], higher_is_better: bool) -> int:
    """The index of the best score; of equals, the first."""
    best = max(scores) if higher_is_better else min(scores)
    return scores.index(best)


def stalled(scores: Sequence[float], patience: int, higher_is_better: bool) -> bool:
    """The last `patience` rounds brought nothing better than the one before them."""
    return len(scores) - 1 - best_round(scores, higher_is_better) >= patience
