"""Dagster's launcher for Kubernetes, which gives a run's pod what the assets in it declare.

Dagster itself reads `dagster-k8s/config` of a step only where each step has a pod of its own; here a run is one process
(see docs/decisions/0006), and a run that trains a model needs what the model does. Of several that a run trains one
after the other, the largest counts. What a person puts on the run as a tag goes before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dagster as dg
from dagster._core.launcher import LaunchRunContext
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_user_defined_k8s_config
from kubernetes.utils.quantity import parse_quantity

from resources.kubernetes.owned import TEAM, label, owner, platform
from resources.kubernetes.pods import CONFIG, RETRIES

MAX_RETRIES = "dagster/max_retries"


class DeclaredRunLauncher(K8sRunLauncher):
    """`K8sRunLauncher` of which each run's pod has what its assets declare, and says whose it is."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """A run on a machine that may be taken away is begun again as often as its assets say."""
        run = context.dagster_run
        retries = max((int(tags.get(RETRIES, 0)) for tags in self._tags(run)), default=0)
        if retries and MAX_RETRIES not in run.tags:
            self._instance.add_run_tags(run.run_id, {MAX_RETRIES: str(retries)})
        super().launch_run(context)

    def get_container_context_for_run(self, dagster_run: dg.DagsterRun) -> K8sContainerContext:
        """Dagster's, the assets' part between the instance's own and that of the run's tags."""
        whose = K8sContainerContext(labels=self._owner(dagster_run))
        plain = super().get_container_context_for_run(dagster_run)
        declared = [{CONFIG: tags[CONFIG]} for tags in self._tags(dagster_run) if CONFIG in tags]
        if not declared:
            return plain.merge(whose)
        asked = together(map(get_user_defined_k8s_config, declared))
        tagged = K8sContainerContext(run_k8s_config=get_user_defined_k8s_config(dagster_run.tags))
        return plain.merge(asked).merge(tagged).merge(whose)

    def _tags(self, run: dg.DagsterRun) -> list[Mapping[str, str]]:
        """Those of each step that the run is to do."""
        if not run.execution_plan_snapshot_id:
            return []
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        wanted = set(plan.step_keys_to_execute)
        return [step.tags or {} for step in plan.steps if step.key in wanted]

    def _owner(self, run: dg.DagsterRun) -> dict[str, str]:
        """The asset where it is one, the team where they are all of one."""
        keys = sorted(run.asset_selection or (), key=lambda key: key.path)
        teams = {TEAM: label(keys[0].path[0])} if len({key.path[0] for key in keys}) == 1 else {}
        return owner(run.run_id, platform(self._instance), keys[0] if len(keys) == 1 else None) | teams


def together(told: Iterable[UserDefinedDagsterK8sConfig]) -> K8sContainerContext:
    """What several assets ask for, as one pod has it: the most of each quantity, and all of the rest."""
    merged, asked = K8sContainerContext(), dict[str, dict[str, str]]()
    for one in told:
        merged = merged.merge(K8sContainerContext(run_k8s_config=one))
        for kind, amounts in one.container_config.get("resources", {}).items():
            most = asked.setdefault(kind, {})
            for name, amount in amounts.items():
                most[name] = max(most.get(name, amount), amount, key=parse_quantity)
    largest = K8sContainerContext(resources=asked) if asked else K8sContainerContext()
    return merged.merge(largest)
