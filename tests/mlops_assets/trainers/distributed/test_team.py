"""How workers share a batch: every row is somebody's, and the average of their gradients is the batch's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.strategies import integers

from mlops_assets.trainers.distributed.team import Share, Team

sizes = integers(1, 5)
rows = integers(1, 60)
batches = integers(1, 25)


def team(size: int, n: int) -> list[Team]:
    return [Team(rank, size, n) for rank in range(size)]


@given(size=sizes, n=rows, batch=batches)
def test_the_parts_of_a_batch_are_the_batch(size: int, n: int, batch: int) -> None:
    """Together, in the order of the workers, they are all rows of an epoch once; one has a row more at most."""
    parts = [one.parts(batch) for one in team(size, n)]
    for number, start in enumerate(range(0, n, batch)):
        of_all = [one[number] for one in parts]
        taken = [row for part in of_all for row in range(part.start, part.stop)]
        assert taken == list(range(start, min(start + batch, n)))
        assert max(part.rows for part in of_all) - min(part.rows for part in of_all) <= 1


@given(size=sizes, n=rows, batch=batches)
def test_the_average_of_weighted_means_is_the_mean_of_the_batch(size: int, n: int, batch: int) -> None:
    """What DistributedDataParallel does, an average over workers, gives the whole batch's mean, however it divides."""
    loss = np.random.default_rng(0).random(n)
    parts = [one.parts(batch) for one in team(size, n)]
    for number, start in enumerate(range(0, n, batch)):
        told = [one[number] for one in parts]
        means = [loss[part.start : part.stop].mean() * part.weight if part.rows else 0.0 for part in told]
        assert np.isclose(np.mean(means), loss[start : start + batch].mean(), rtol=1e-12)


@given(size=sizes, n=rows, batch=batches)
def test_a_share_takes_a_workers_rows_alone(size: int, n: int, batch: int) -> None:
    """Of any order of the epoch, those at the places of its parts; all shares together are the epoch."""
    order = np.random.default_rng(1).permutation(n)
    taken = [Share(np.arange(n), one, batch)[order] for one in team(size, n)]
    assert sorted(np.concatenate(taken)) == list(range(n))
    for one, found in zip(team(size, n), taken, strict=True):
        expected = [order[part.start : part.stop] for part in one.parts(batch)]
        np.testing.assert_array_equal(found, np.concatenate(expected))
