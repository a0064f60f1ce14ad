"""A row that brings an array says it as numbers, as many as the model reads."""

from __future__ import annotations

import pytest

from mlops_assets.input_schema import Column, InputSchema
from mlops_assets.serving.plan import FeaturePlan
from mlops_assets.serving.request import problems

PLAN = FeaturePlan("flights/late", "flight_id", (), (), (), ("embedding",))
SCHEMA = InputSchema((Column("embedding", "Float64Array", size=2),))


@pytest.mark.parametrize("array", [[0.5, 1], None])
def test_an_array_of_its_length_or_none_is_taken(array: object) -> None:
    assert problems({"features": {"embedding": array}}, PLAN, SCHEMA) == []


@pytest.mark.parametrize(
    ("array", "said", "fix"),
    [
        ([0.5], "an array of 1 numbers", "embedding has 2 numbers."),
        ([0.5, 1, 2], "an array of 3 numbers", "embedding has 2 numbers."),
        ([0.5, "1"], "[0.5, '1'] is not an array of finite numbers", "Give embedding as an array of finite numbers."),
        ([0.5, None], "[0.5, None] is not an array of finite numbers", "Give embedding as an array of finite numbers."),
        (0.5, "0.5 is not an array of finite numbers", "Give embedding as an array of finite numbers."),
    ],
)
def test_any_other_is_refused_by_name(array: object, said: str, fix: str) -> None:
    (problem,) = problems({"features": {"embedding": array}}, PLAN, SCHEMA)
    assert (problem.field, problem.problem, problem.fix) == ("embedding", said, fix)
