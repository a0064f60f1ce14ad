"""Images through the whole chain, twice: a net by torch and the same by MLX, from their tables to answers and reports.

Told once for torch, whose endpoint is asked; the twin's candidate is judged beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from feature_assets.vision.digits import DARKEST, all_digits
from mlops_assets.trainers import SERVING_GRAPH, load_predictor, native_predictor
from model_assets.vision.digit import digit, digit_mlx

if TYPE_CHECKING:
    from conftest import Endpoint, Platform, Ran

CUTOFF, DAY = "2024-01-22", timedelta(days=1)
CALM, INVERTED = datetime(2024, 1, 19, tzinfo=UTC), datetime(2024, 1, 25, tzinfo=UTC)
pytestmark = pytest.mark.slow
REPORTS = ("predictions", "quality_report", "drift_report", "performance_report")


def images(until: datetime, days: int = 3) -> pl.DataFrame:
    """Those of some days, the last the one named."""
    return all_digits().filter(pl.col("scanned_at").is_between(until - (days - 1) * DAY, until + DAY, closed="left"))


def rows(some: pl.DataFrame, inverted: bool = False) -> list[dict[str, Any]]:
    told = some.select("image_id", "pixels").to_dicts()
    return [{**row, "pixels": [DARKEST - dark for dark in row["pixels"]]} if inverted else row for row in told]


@dataclass
class Story:
    platform: Platform
    ran: dict[str, Ran] = field(default_factory=dict)
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    refused: dict[str, Any] = field(default_factory=dict)
    page: dict[str, Any] = field(default_factory=dict)

    def bundle(self, model: Any) -> Path:
        release = self.platform.promotion.releases.read(model.id)
        assert release is not None
        return self.platform.promotion.bentos.path(release.champion.release)


@pytest.fixture(scope="module")
def story(empty_platform: Platform) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        platform = replace(empty_platform, model=digit)
        story = Story(platform)
        story.ran["tables"] = platform.fill("2024-01-01", "2024-01-25")
        story.ran["digit"] = platform.train(CUTOFF)
        story.ran["digit_mlx"] = replace(empty_platform, model=digit_mlx).train(CUTOFF)
        for name, ran in story.ran.items():
            assert ran.ok, f"{name}: {ran.trouble}"
        with platform.endpoint() as endpoint:
            asked(story, endpoint)
        for day in (CALM, INVERTED):
            story.ran[f"reports {day:%d}"] = platform.run(*REPORTS, partition=f"{day:%Y-%m-%d}")
        story.ran["scores"] = platform.run("scores", partition=f"{INVERTED:%Y-%m-%d}")
        yield story


def asked(story: Story, endpoint: Endpoint) -> None:
    """Three days of images as they are, three inverted, and some that cannot be answered."""
    story.answers["calm"] = endpoint.ask(rows(images(CALM)), CALM)
    story.answers["inverted"] = endpoint.ask(rows(images(INVERTED), inverted=True), INVERTED)
    story.page = endpoint.request("GET", "/openapi.json").json()
    (image,) = rows(images(CALM)[:1])
    wrong: dict[str, Any] = {
        "short": image["pixels"][:-1],
        "too dark": [17.0, *image["pixels"][1:]],
        "nested": np.array(image["pixels"]).reshape(8, 8).tolist(),
        "text": "an image",
    }
    for name, pixels in wrong.items():
        story.refused[name] = endpoint.post([{**image, "pixels": pixels}], CALM)
    path = f"/v2/models/{story.platform.model.id.replace('/', '.')}/infer"
    tensor = {"name": "pixels", "datatype": "FP64", "shape": [1, 64], "data": image["pixels"]}
    story.answers["v2"] = endpoint.request("POST", path, json={"inputs": [tensor]}).json()["outputs"]


def right(answers: Sequence[dict[str, Any]]) -> float:
    truth = dict(all_digits().select("image_id", "digit").iter_rows())
    return float(np.mean([answer["prediction"] == truth[answer["request_id"]] for answer in answers]))


def test_every_step_of_it_happened(story: Story) -> None:
    for name, ran in story.ran.items():
        assert ran.ok, f"{name}: {ran.trouble}"


@pytest.mark.parametrize("model", [digit, digit_mlx], ids=lambda model: model.name)
def test_both_nets_know_97_of_100_holdout_images(story: Story, model: Any) -> None:
    """The gate's floor, on images of five days that neither was fitted on; all they are judged by is told."""
    ran = story.ran[model.name]
    floor, facts = ran.checks["clears_floor"], ran.facts["candidate"]
    assert floor.passed and floor.metadata["floor"].value == 0.97 and floor.metadata["candidate"].value >= 0.97
    assert facts["metric"] == floor.metadata["candidate"].value
    client = story.platform.promotion.mlflow.client()
    metrics = client.get_run(facts["mlflow_run_id"]).data.metrics
    assert {"holdout_top1_accuracy", "holdout_f1_macro", "holdout_balanced_accuracy"} <= metrics.keys()


@pytest.mark.parametrize("model", [digit, digit_mlx], ids=lambda model: model.name)
def test_both_formats_of_a_bundle_say_the_same(story: Story, model: Any) -> None:
    """Its graph, its own library and the other one: the classes' shares to 1e-5, the classes alike."""
    bundle = story.bundle(model) / "model"
    assert (bundle / SERVING_GRAPH).is_file()
    x = np.array(images(INVERTED)["pixels"].to_list(), np.float32)
    first, *others = [load_predictor(model.trainer.framework, bundle)] + [
        native_predictor(framework, bundle) for framework in ("torch", "mlx")
    ]
    for other in others:
        np.testing.assert_allclose(other.shares(x), first.shares(x), atol=1e-5)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(other(x), first(x))


def test_an_image_goes_in_and_a_class_comes_out(story: Story) -> None:
    """With how likely it is held to be: of what it is sure of, hardly any is wrong."""
    answers = story.answers["calm"]
    assert len(answers) == 216 and right(answers) >= 0.97
    assert {answer["prediction"] for answer in answers} == {float(one) for one in range(10)}
    assert all(0.1 < answer["confidence"] <= 1 for answer in answers)
    assert right([answer for answer in answers if answer["confidence"] > 0.99]) >= 0.99


def test_the_open_inference_protocol_answers_the_same(story: Story) -> None:
    said = {output["name"]: output["data"][0] for output in story.answers["v2"]}
    first = story.answers["calm"][0]
    assert said == {"prediction": first["prediction"], "confidence": pytest.approx(first["confidence"])}


def test_what_is_no_such_image_is_refused_with_the_fix(story: Story) -> None:
    """Its length, its bounds and its shape are asked for before any model sees it."""
    said = {name: answer.json()["errors"][0] for name, answer in story.refused.items()}
    assert {answer.status_code for answer in story.refused.values()} == {422}
    assert said["short"]["problem"] == "an array of 63 numbers" and said["short"]["fix"] == "pixels has 64 numbers."
    assert "out of bounds" in said["too dark"]["problem"] and "between 0 and 16" in said["too dark"]["fix"]
    assert all("is not an array of finite numbers" in said[name]["problem"] for name in ("nested", "text"))


def test_the_page_says_what_an_image_and_an_answer_are(story: Story) -> None:
    """64 numbers from 0 to 16, a class and its confidence."""
    described = story.page["paths"]["/vision/digit/predict"]["post"]
    asked = described["requestBody"]["content"]["application/json"]["schema"]["properties"]["rows"]["items"]["anyOf"]
    pixels = asked[0]["properties"]["pixels"]
    assert (pixels["minItems"], pixels["maxItems"], pixels["items"]["maximum"]) == (64, 64, 16)
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["predictions"]
    told = answer["items"]["properties"]
    assert told["prediction"]["description"] == "The class: digit" and told["confidence"]["maximum"] == 1


def test_scores_tell_the_confidence_as_answers_do(story: Story) -> None:
    scores = story.platform.resources["lake"].scan("vision/digit/scores", [f"{INVERTED:%Y-%m-%d}"]).collect()
    assert scores.height == 69 and scores["confidence"].is_between(0.1, 1).all()
    assert (scores["prediction"] % 1 == 0).all()


def test_calm_images_have_not_drifted(story: Story) -> None:
    """The window of a report, 216 images: far below the limit, and so are the classes."""
    ran = story.ran["reports 19"]
    facts = ran.facts["drift_report"]
    assert ran.checks["drift"].passed and facts["verdict"] == "stable" == facts["prediction_verdict"]
    assert facts["psi/pixels"] < 0.1 and facts["rows"] == 216


def test_inverted_images_have_drifted(story: Story) -> None:
    """Each number is within its bounds and none is missing: no check of a single pixel would say a word."""
    ran = story.ran["reports 25"]
    facts, check = ran.facts["drift_report"], ran.checks["drift"]
    assert not check.passed and ran.checks["pipeline_healthy"].passed
    assert facts["psi/pixels"] > 2 and facts["verdict"] == "drift"
    assert "pixels moved away, told apart with ROC AUC 1.00" in check.description
    assert Path(facts["report_file"]).is_file()


def test_the_metric_of_inverted_images_fell(story: Story) -> None:
    """By labels that somebody typed in; Evidently draws the classes."""
    calm, inverted = (story.ran[f"reports {day}"] for day in ("19", "25"))
    assert calm.checks["metric_drop"].passed and not inverted.checks["metric_drop"].passed
    facts = calm.facts["performance_report"]
    known = story.answers["calm"][:-2]  # the last two were not typed in by the end of the day
    assert facts["pending"] == 2 and facts["metric"] == pytest.approx(right(known))
    assert "Confusion" in Path(inverted.facts["performance_report"]["report_file"]).read_text()
