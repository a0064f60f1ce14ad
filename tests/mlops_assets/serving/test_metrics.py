"""What Prometheus reads of a serving process: every request and row counted once, by release and stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.prediction_log import NoLog
from mlops_assets.serving.releases import OneRelease

FULL = {"distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False, "temp": 50.0, "delay": 4.0}
KEYED = {"origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False}


def scraped(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_count_what_was_answered(make_bundle: Callable[..., Path]) -> None:
    """Requests by status, rows, latency, stages, fallbacks by view and reason: differences over three requests."""
    release = Release.load(make_bundle(model="flights/counted"))

    async def story() -> tuple[str, str]:
        app = create_app(lambda: Serving(OneRelease(release, "m:9", "9"), EmptyStore(), NoLog()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            before = (await client.get("/metrics")).text
            await client.post("/flights/counted/predict", json={"rows": [{"features": FULL}] * 3})
            await client.post("/flights/counted/predict", json={"rows": [KEYED]})
            await client.post("/flights/counted/predict", json={"rows": []})
            return before, (await client.get("/metrics")).text

    before, after = (scraped(text) for text in anyio.run(story))

    def more(name: str, **labels: str) -> float:
        sample = (f"mlops_endpoint_{name}", tuple(sorted({"model": "flights/counted", **labels}.items())))
        return after[sample] - before.get(sample, 0.0)

    assert more("requests_total", status="200") == 2
    assert more("requests_total", status="422") == 1
    assert more("rows_total", release="m:9", variant="champion") == 4
    assert more("latency_seconds_count", release="m:9") == 2
    assert more("latency_seconds_bucket", release="m:9", le="+Inf") == 2
    assert 0 < more("latency_seconds_sum", release="m:9") < 1
    for stage in ("look_up", "preprocess", "model", "postprocess"):
        assert more("stage_seconds_count", release="m:9", stage=stage) == 2
    assert more("fallbacks_total", release="m:9", view="flights/weather", reason="no row") == 1
    assert more("fallbacks_total", release="m:9", view="flights/route", reason="no row") == 1
    assert after["mlops_endpoint_queue_depth", ()] == 0


@pytest.mark.parametrize(("seconds", "bound"), [(0.0005, "0.0005"), (0.00051, "0.001"), (99.0, "+Inf")])
def test_a_bucket_holds_what_is_at_most_its_bound(seconds: float, bound: str) -> None:
    """As Prometheus defines `le`; what is counted in bulk falls where single observations would."""
    from prometheus_client import CollectorRegistry, Histogram

    from mlops_assets.serving import metrics

    tally, registry = metrics.Tally(), CollectorRegistry()
    single = Histogram("single", "one by one", buckets=metrics.BOUNDS, registry=registry)
    bulk: Any = metrics._Counts("bulk", "at once", buckets=metrics.BOUNDS, registry=registry)
    single.observe(seconds)
    place = metrics.bisect_left(metrics.BOUNDS, seconds)
    tally.latency[place] += 1
    bulk.add(tally.latency, seconds)
    samples = {(s.name, s.labels.get("le")): s.value for family in registry.collect() for s in family.samples}
    bounds = [le for name, le in samples if name == "single_bucket"]
    assert [samples["bulk_bucket", le] for le in bounds] == [samples["single_bucket", le] for le in bounds]
    assert next(le for le in bounds if samples["bulk_bucket", le] == 1) == bound
    assert samples["bulk_sum", None] == samples["single_sum", None]
