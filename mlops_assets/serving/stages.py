"""The stages between a valid question and its answers: look-up, pre-processing, model, post-processing.

The endpoint and the batch scores both answer through here, which is why they agree.
"""

from __future__ import annotations

from time import perf_counter

from mlops_assets.serving.answers import Answers, Inputs, Question, RowInputs
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import Looked, Store, look_up
from resources.releases import Variant


def answer(release: Release, variant: Variant, question: Question, store: Store) -> Answers:
    """What a release says to a question. Raises what its parts raise: OnlineStoreUnavailableError, InputError, ..."""
    began = perf_counter()
    inputs, looked = _inputs(release, question, store)
    found = perf_counter()
    matrix = inputs.matrix(release.schema)
    prepared = perf_counter()
    predictions = release.predictor(matrix).tolist()
    predicted = perf_counter()
    post = release.postprocess
    outputs = {} if post is None else post.outputs_of(inputs, release.plan.inputs, predictions)
    ended = perf_counter()
    return Answers(
        model=release.plan.model,
        variant=variant,
        question=question,
        names=release.plan.inputs,
        inputs=inputs,
        predictions=predictions,
        outputs=outputs,
        looked=looked,
        stages=(found - began, prepared - found, predicted - prepared, ended - predicted),
    )


def _inputs(release: Release, question: Question, store: Store) -> tuple[Inputs, list[Looked] | None]:
    """As the rows brought them, or looked up by key with what is computed on demand."""
    if question.given is not None:
        return question.given, None
    looked = look_up(release.plan, store, question.asked or (), question.at)
    return RowInputs([one.values for one in looked]), looked
