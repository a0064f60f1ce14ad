"""Automation runs from the start and asks for what is missing."""

import dagster as dg

from sensors.automation import automation_sensor


@dg.asset
def source() -> None: ...


@dg.asset(deps=[source], automation_condition=dg.AutomationCondition.eager())
def feature() -> None: ...


def test_the_sensor_stands_for_dagsters_own_and_is_running() -> None:
    """Written out once, it replaces the default one, which would be stopped."""
    defs = dg.Definitions(assets=[source, feature], sensors=[automation_sensor])
    (only,) = defs.get_repository_def().sensor_defs
    assert (only.name, only.default_status) == ("automation", dg.DefaultSensorStatus.RUNNING)


def test_an_asset_follows_what_it_reads() -> None:
    """A baseline tick asks for nothing; a new source asks for the feature, once."""
    defs = dg.Definitions(assets=[source, feature], sensors=[automation_sensor])
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(defs, instance)
        dg.materialize([source], instance=instance)
        after = dg.evaluate_automation_conditions(defs, instance, cursor=before.cursor)
        again = dg.evaluate_automation_conditions(defs, instance, cursor=after.cursor)
    assert [r.total_requested for r in (before, after, again)] == [0, 1, 0]
