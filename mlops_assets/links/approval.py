"""The approval of a model's candidates, as an asset: a person materializes it to say yes or no to a version.

Its configuration is the word: version, decision, by and why. The asset's page is the list of who decided what. Where a
run was started says nothing about who the person is: `by` is asked for, and believed.
"""

from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from mlops_assets.approval import LINK, approval_key, decide
from mlops_assets.declarations import ModelPipeline
from mlops_assets.links import spec
from mlops_assets.promotion import Promotion
from resources.alerts import AlertResource
from resources.approvals import APPROVED, REFUSED, AnonymousDecisionError, DecidedApprovalError, UnknownApprovalError
from resources.mlflow import UnknownModelVersionError


class Decision(Enum):
    """What a person says."""

    approve = APPROVED
    refuse = REFUSED


class Word(dg.Config):
    """A person's word on a version."""

    version: str = Field(description="The registered version, e.g. 3")
    decision: Decision = Field(description="approve or refuse")
    by: str = Field(description="Who decides")
    why: str = Field(description="Kept with the decision")


def approval_asset(model: ModelPipeline) -> dg.AssetsDefinition:
    @dg.asset(
        key=approval_key(model),
        deps=[spec.link_key(model, "candidate")],
        description=(
            f"A person's word on a candidate of {model.title} before it becomes champion. Materialize it with the "
            "version, the decision, who decides and why."
        ),
        **spec.belonging(model, LINK),
        code_version="1",
    )
    def approval(
        config: Word, promotion: dg.ResourceParam[Promotion], alerts: AlertResource
    ) -> dg.MaterializeResult[Any]:
        try:
            word = decide(model, config.version, config.decision.value, promotion, alerts, by=config.by, why=config.why)
        except (AnonymousDecisionError, DecidedApprovalError, UnknownApprovalError, UnknownModelVersionError) as told:
            raise dg.Failure(str(told), allow_retries=False) from told
        shown = {"version": word.version, "decision": word.state, "by": word.by, "why": word.why}
        return dg.MaterializeResult(
            metadata={**shown, "at": word.decided_at, "asked_at": word.asked_at},
            data_version=dg.DataVersion(f"version {word.version} {word.state}"),
        )

    return approval
