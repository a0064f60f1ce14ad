"""Late answers: a day whose log was written to after its table was published is published again.

A slow worker flushes after midnight, and a caller may ask about a day that is long over. Days that were never
published are left alone: who wants their table materializes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dagster as dg

QUIET_SECONDS = 60.0  # a log that is being written to is read when it is done
SAME_SECONDS = 120.0  # a table may be published while the last lines come
EVERY_SECONDS = 300
Written = Callable[[], Mapping[str, float]]
Published = Callable[[str], float | None]


def late_days(written: Mapping[str, float], published: Published, now: float) -> dict[str, float]:
    """The published days whose log was written to since, or shortly before, and when; all as seconds of Unix."""
    quiet = {day: at for day, at in written.items() if at < now - QUIET_SECONDS}
    return {day: at for day, at in quiet.items() if (then := published(day)) is not None and at > then - SAME_SECONDS}


def late_answers_sensor(
    model_id: str, predictions: dg.AssetKey, written: Written, published: Published, clock: Callable[[], float]
) -> dg.SensorDefinition:
    """Ask for the predictions of late days; the day and the time of its last line are the run's key.

    `written` says by day when the log was last written to, `published` when the table of a day was, if ever.
    """

    @dg.sensor(
        name=f"{model_id.replace('/', '__')}__late_answers",
        asset_selection=dg.AssetSelection.assets(predictions),
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Publishes the predictions of {model_id} again where answers came after their table.",
        tags={"mlops/model": model_id},
    )
    def sensor() -> dg.SensorResult:
        late = late_days(written(), published, clock())
        requests = [
            dg.RunRequest(run_key=f"{day} {at:.3f}", partition_key=day, asset_selection=[predictions])
            for day, at in sorted(late.items())
        ]
        return dg.SensorResult(run_requests=requests, skip_reason=None if late else f"{model_id}: none came late")

    return sensor
