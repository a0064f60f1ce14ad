"""A person's word on a candidate: asked for by an alert, given by a command or an asset, and told to everybody.

What counts is the row in `resources.approvals`. Everything else follows it and is made up for when a process is killed
in between: the registry's tags, the decisions of `mlops history`, the alerts, and the run that releases what was
approved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import dagster as dg

from mlops_assets.links import spec
from resources.alerts import Alert
from resources.approvals import APPROVED, EXPIRED, WAITING
from sensors.approvals import approvals_sensor

if TYPE_CHECKING:
    from mlops_assets.declarations import ModelPipeline
    from mlops_assets.promotion import Promotion
    from resources.alerts import AlertResource
    from resources.approvals import Approval, Verdict

LINK = "approval"
RELEASED = ("champion", "bento", "endpoint")


class NoApprovalNeededError(RuntimeError):
    """A word was given on a model that asks for none."""

    @classmethod
    def of(cls, model: ModelPipeline) -> Self:
        return cls(
            f"{model.title} becomes champion without approval. Declare `approval=Approval()` to be asked first; "
            f"`mlops promote {model.id}` and `mlops rollback {model.id}` move what is there."
        )


def approval_key(model: ModelPipeline) -> dg.AssetKey:
    return spec.link_key(model, LINK)


def approvals(model: ModelPipeline) -> dg.SensorDefinition:
    """The sensor that ends the wait for what nobody approved in time."""

    def told() -> list[Approval]:
        from mlops_assets.promotion import Promotion
        from resources.environment import resources_for

        resources = resources_for()
        return tell(model, Promotion.of(resources), resources["alerts"])

    return approvals_sensor(model.id, told)


def decide(
    model: ModelPipeline,
    version: str,
    verdict: Verdict,
    promotion: Promotion,
    alerts: AlertResource,
    *,
    by: str,
    why: str,
) -> Approval:
    """Take down a person's word and tell it; what was approved is released by a run of its own.

    Raises NoApprovalNeededError, UnknownModelVersionError for a version that is not (any more) in the registry, and
    what `ApprovalStore.decide` does.
    """
    if model.approval is None:
        raise NoApprovalNeededError.of(model)
    promotion.mlflow.version(model.registered_name, version)
    approval = promotion.approvals.decide(model.id, version, verdict, by=by, why=why)
    tell(model, promotion, alerts)
    return approval


def tell(model: ModelPipeline, promotion: Promotion, alerts: AlertResource) -> list[Approval]:
    """Bring everybody after what was asked and decided about a model; what was news."""
    from resources.decisions import DecisionStore

    if model.approval is None:
        return []
    promotion.approvals.expire(model.id)
    news = promotion.approvals.untold(model.id)
    for approval in news:
        _alert(model, approval, promotion, alerts)
        DecisionStore().record(
            model.id,
            "approval",
            approval.state,
            [f"version {approval.version}: {approval.why or approval.asked_why}"],
            by=approval.by or approval.asked_by,
            evidence={"version": approval.version, "expires_at": approval.expires_at},
        )
        promotion.show(model, approval)
        _release(model, approval, promotion)
        promotion.approvals.told(approval)
    return news


def _release(model: ModelPipeline, approval: Approval, promotion: Promotion) -> None:
    """Start the run that releases what was approved, once a version; what was promoted by hand needs none."""
    from resources.champions import ALIAS
    from resources.events import Event, push

    if approval.state != APPROVED or promotion.mlflow.alias(model.registered_name, ALIAS) == approval.version:
        return
    assets = tuple(spec.link_key(model, link).to_user_string() for link in RELEASED)
    name = f"{model.id} version {approval.version}"
    push(Event(id=f"approval of {name}", kind="approval given", assets=assets, subject=name))


def _alert(model: ModelPipeline, approval: Approval, promotion: Promotion, alerts: AlertResource) -> None:
    if approval.state == WAITING:
        alerts.send(question(model, approval, promotion, alerts))
        return
    alerts.resolve(_episode(approval))
    if approval.state == EXPIRED:
        alerts.send(expired(model, approval, alerts))


def question(model: ModelPipeline, approval: Approval, promotion: Promotion, alerts: AlertResource) -> Alert:
    """Asks people for their word, with what it takes to give it."""
    word = f"{model.id} {approval.version} --why ..."
    return Alert(
        title=f"{model.id} version {approval.version} waits for approval",
        text=f"It {approval.asked_why}; until {approval.expires_at[:16]} UTC",
        severity="warning",
        link=alerts.asset_link(approval_key(model)),
        suggestion=f"`mlops approve {word}` or `mlops refuse {word}`, or materialize the page's asset",
        group=model.id,
        key=_episode(approval),
        links={"version": promotion.mlflow.version_url(model.registered_name, approval.version)},
    )


def expired(model: ModelPipeline, approval: Approval, alerts: AlertResource) -> Alert:
    """Says that nobody answered in time."""
    return Alert(
        title=f"{model.id} version {approval.version} was not approved in time",
        text=f"{approval.why}; the champion stays, and the next candidate is asked about anew",
        severity="warning",
        link=alerts.asset_link(approval_key(model)),
        suggestion=f"`mlops promote {model.id} --version {approval.version} --why ...` to have it all the same",
        group=model.id,
        key=f"{_episode(approval)} expired",
    )


def _episode(approval: Approval) -> str:
    return f"approval of {approval.model} version {approval.version}"
