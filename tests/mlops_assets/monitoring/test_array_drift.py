"""Images that changed are found, as one column; images that did not are left in peace."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from feature_assets.vision.digits import all_digits
from mlops_assets.monitoring.array_drift import array_index, auc_of, told_apart
from mlops_assets.monitoring.drift import DriftResult, IncomparableColumnsError, column_drift, drift

Change = Callable[[np.ndarray], np.ndarray]
NOISE = np.random.default_rng(3)
CHANGES: dict[str, Change] = {
    "inverted": lambda image: 16 - image,
    "turned by 90 degrees": np.rot90,
    "a pixel to the right": lambda image: np.roll(image, 1, axis=1),
    "noisy": lambda image: np.clip(image + NOISE.normal(0, 2, image.shape), 0, 16),
    "paler": lambda image: 0.8 * image,
}


@pytest.fixture(scope="module")
def images() -> pl.DataFrame:
    return all_digits().select("pixels")


def changed(rows: pl.DataFrame, change: Change) -> pl.DataFrame:
    images = [change(np.array(pixels).reshape(8, 8)).ravel().tolist() for pixels in rows["pixels"]]
    return pl.DataFrame({"pixels": images})


def judged(images: pl.DataFrame, current: pl.DataFrame) -> DriftResult:
    return drift(images.head(1_200), current, min_rows=150)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_images_are_found(images: pl.DataFrame, change: Change) -> None:
    """Three days of them against what a model was trained on: one column, drifted, with how well it is told apart."""
    found = judged(images, changed(images[1_300:1_516], change))
    assert found.verdict == "drift" and found.drifted == ("pixels",)
    assert found.columns[0].kind == "array" and found.columns[0].how.startswith("away, told apart with ROC AUC ")
    assert float(found.columns[0].how.rpartition(" ")[2]) >= 0.99
    assert "an array's is that of two normal distributions as easily told apart" in found.rule


def test_other_images_of_the_same_kind_are_no_drift(images: pl.DataFrame) -> None:
    """Of twenty drawn windows none is, by a limit that is not close: it would be an AUC of 0.62."""
    indices = []
    for seed in range(20):
        rows = images.sample(fraction=1.0, shuffle=True, seed=seed)
        found = judged(rows, rows[1_300:1_516])
        assert found.verdict == "stable"
        indices.append(found.psi_max)
    assert max(indices) < 0.1
    assert auc_of(0.2) == pytest.approx(0.624, abs=1e-3)


def test_the_same_rows_give_the_same_number(images: pl.DataFrame) -> None:
    """To the last bit, also where only a sample of them is looked at."""
    many = pl.concat([images] * 2)
    pair = many["pixels"], changed(images, CHANGES["paler"])["pixels"]
    assert array_index(*pair) == array_index(*pair)


@pytest.mark.parametrize("seed", range(3))
def test_an_index_means_what_it_means_for_a_number(seed: int) -> None:
    """A normal distribution that moved by z deviations has an index of about z squared, as a PSI has."""
    random = np.random.default_rng(seed)
    past, now = random.normal(size=(2_000, 1)), random.normal(0.6, size=(2_000, 1))
    as_array = array_index(pl.Series(past.tolist()), pl.Series(now.tolist()))
    as_number = column_drift(pl.Series("x", past[:, 0]), pl.Series("x", now[:, 0])).psi
    assert as_array == pytest.approx(0.36, abs=0.12) and as_number == pytest.approx(0.36, abs=0.12)


def test_what_only_spreads_is_told_apart_too() -> None:
    """The mean of each place is as it was."""
    random = np.random.default_rng(0)
    assert told_apart(random.normal(size=(500, 8)), random.normal(0, 2, size=(500, 8))) > 0.9


def test_arrays_with_holes_count_as_missing() -> None:
    """A null, a NaN, an empty array: their share is reported, the rest is compared."""
    rows = [[float(place), 1.0] for place in range(8)]
    holes: list[list[float | None] | None] = [None, [None, 1.0], [float("nan"), 1.0], []]
    found = column_drift(pl.Series("e", rows), pl.Series("e", [*rows, *holes], dtype=pl.List(pl.Float64)))
    assert found.null_share_current == pytest.approx(4 / 12) and found.psi is not None and not found.drifted
    gone = column_drift(pl.Series("e", rows), pl.Series("e", holes, dtype=pl.List(pl.Float64)))
    assert gone.psi is None and not gone.drifted


def test_arrays_of_two_lengths_are_refused() -> None:
    """Releases that read another embedding cannot be compared, and the lengths are told."""
    with pytest.raises(IncomparableColumnsError, match="'e' holds arrays of 2 and 3 numbers"):
        column_drift(pl.Series("e", [[1.0, 2.0]] * 9), pl.Series("e", [[1.0, 2.0, 3.0]] * 9))
    with pytest.raises(IncomparableColumnsError, match="'e' is List"):
        column_drift(pl.Series("e", [[1.0, 2.0]] * 9), pl.Series("e", [1.0] * 9))


def test_a_class_is_no_number_however_many_there_are() -> None:
    """Of forty classes one came to be answered twice as often: compared class by class, not in bins of a range."""
    past = pl.DataFrame({"x": [0.0] * 4_000, "prediction": [float(place % 40) for place in range(4_000)]})
    now = past.with_columns(pl.when(pl.col("prediction") == 7).then(31.0).otherwise("prediction").alias("prediction"))
    found = drift(past, now, limit=0.1, classes=True).prediction
    assert found is not None and found.kind == "categorical" and found.how.startswith("'")
    assert found.psi == pytest.approx(0.025 * np.log(2) + (0.025 - 1e-4) * np.log(0.025 / 1e-4))
