"""Which technique does best where: judged by the model's own metric, on each device by itself."""

from __future__ import annotations

from mlops_assets.techniques import techniques
from resources.tracking.runs import Run

METRICS = {"flights/late": "holdout_roc_auc", "flights/delay": "holdout_mae"}
AUC, MAE = METRICS.values()


def run(model: str, device: str, trainer: str, **metrics: float) -> Run:
    kind, _, name = device.partition(": ")
    tags = {"accelerator": kind, "device": name, "trainer": trainer}
    return Run(
        "r", model, "a run", "FINISHED", None, None, {k.replace("__", "/"): v for k, v in metrics.items()}, {}, tags
    )


def marked(*runs: Run, by: dict[str, str] = METRICS) -> list[tuple[str, str]]:
    return [(one.device, one.technique) for one in techniques(runs, by.__getitem__) if one.is_best]


def test_the_best_of_each_device_is_marked() -> None:
    """The one that is best on a GPU need not be on a CPU; the median counts, not the luckiest run."""
    found = techniques(
        [
            *(run("flights/late", "cpu: Xeon", "Trees", holdout_roc_auc=value) for value in (0.70, 0.72, 0.71)),
            *(run("flights/late", "cpu: Xeon", "Net", holdout_roc_auc=value) for value in (0.60, 0.90, 0.65)),
            run("flights/late", "cuda: H200", "Trees", holdout_roc_auc=0.71),
            run("flights/late", "cuda: H200", "Net", holdout_roc_auc=0.75),
        ],
        METRICS.__getitem__,
    )
    order = [(one.device, one.technique, one.is_best) for one in found]
    assert order == [
        ("cpu: Xeon", "Trees", True),
        ("cpu: Xeon", "Net", False),
        ("cuda: H200", "Net", True),
        ("cuda: H200", "Trees", False),
    ]
    assert (found[1].best, found[1].median, found[1].runs) == (0.90, 0.65, 3)


def test_the_smaller_error_is_the_better() -> None:
    errors = [
        run("flights/delay", "cpu: Xeon", name, holdout_mae=mae) for name, mae in (("Trees", 12.0), ("Net", 10.0))
    ]
    (net, trees) = techniques(errors, METRICS.__getitem__)
    assert (net.technique, net.is_best, trees.is_best) == ("Net", True, False)
    assert (
        techniques([*errors, run("flights/delay", "cpu: Xeon", "Net", holdout_mae=8.0)], lambda _: MAE)[0].best == 8.0
    )


def test_of_equals_the_quicker_is_the_better() -> None:
    pair = [
        run("flights/late", "cpu: Xeon", name, holdout_roc_auc=0.7, seconds_total=s) for name, s in (("A", 9), ("B", 3))
    ]
    assert marked(*pair) == [("cpu: Xeon", "B")]


def test_models_are_not_compared_with_each_other() -> None:
    """Each is judged by its own metric, and each has its own best."""
    late = run("flights/late", "cpu: Xeon", "Trees", holdout_roc_auc=0.7)
    delay = run("flights/delay", "cpu: Xeon", "Net", holdout_mae=10.0)
    assert [one.metric for one in techniques([late, delay], METRICS.__getitem__)] == [MAE, AUC]
    assert len(marked(late, delay)) == 2


def test_what_was_not_judged_is_not_the_best() -> None:
    """A run that failed counts as a run and no more; of a metric that is none of ours nobody knows what is better."""
    failed, done = (
        run("flights/late", "cpu: Xeon", "Net"),
        run("flights/late", "cpu: Xeon", "Trees", holdout_roc_auc=0.6),
    )
    assert marked(failed) == [] and marked(failed, done) == [("cpu: Xeon", "Trees")]
    assert marked(run("flights/late", "cpu: Xeon", "Trees", clicks=3.0), by={"flights/late": "clicks"}) == []


def test_medians_of_what_it_took_are_told() -> None:
    """What a run did not tell is left out; runs that were slowed by heat are counted."""
    runs = [
        run(
            "flights/late",
            "cuda: H200",
            "Net",
            seconds_total=10,
            hardware__rows_per_second=100,
            hardware__thermal_step=0,
        ),
        run(
            "flights/late",
            "cuda: H200",
            "Net",
            seconds_total=30,
            hardware__gpu_peak_memory_gb=4,
            hardware__thermal_step=2,
        ),
        run("flights/late", "cuda: H200", "Net", hardware__peak_memory_gb=1.5),
    ]
    (one,) = techniques(runs, METRICS.__getitem__)
    assert (one.seconds, one.rows_per_second, one.gpu_peak_memory_gb, one.peak_memory_gb, one.hot) == (
        20,
        100,
        4,
        1.5,
        1,
    )
    bare = Run("r", "flights/late", "old", "FINISHED", None, None, {}, {}, {"hardware": "2 CPUs", "framework": "torch"})
    (older,) = techniques([bare], METRICS.__getitem__)
    assert (older.device, older.technique, older.median) == ("2 CPUs", "torch", None)
