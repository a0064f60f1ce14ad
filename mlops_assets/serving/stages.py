"""The stages between a valid question and its answers: look-up, pre-processing, model, post-processing.

The endpoint and the batch scores both answer through here, which is why they agree.
"""

from __future__ import annotations

from time import perf_counter

from mlops_assets.serving.answers import Answers, Inputs, Question, RowInputs
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import Store, compute, find
from resources.releases import Variant


def answer(release: Release, variant: Variant, question: Question, store: Store) -> Answers:
    """What a release says to a question. Raises what its parts raise: OnlineStoreUnavailableError, InputError, ..."""
    plan, looked = release.plan, None
    began = found = perf_counter()
    if question.given is not None:
        inputs: Inputs = question.given
    else:
        known, looked = find(plan, store, question.asked or (), question.at)
        found = perf_counter()
        compute(plan, known, looked)
        inputs = RowInputs([one.values for one in looked])
    matrix = inputs.matrix(release.schema)
    prepared = perf_counter()
    predictions, outputs = release.judged(matrix)
    predicted = perf_counter()
    if (post := release.postprocess) is not None:
        outputs |= post.outputs_of(inputs, plan.inputs, predictions)
    ended = perf_counter()
    return Answers(
        model=plan.model,
        variant=variant,
        question=question,
        names=plan.inputs,
        inputs=inputs,
        predictions=predictions,
        outputs=outputs,
        looked=looked,
        stages=(found - began, prepared - found, predicted - prepared, ended - predicted),
    )
