"""The log of a serving process: one JSON object a line, whatever is logged."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime

from mlops_assets.serving.logs import JsonFormatter

PROGRAM = """
import logging
from mlops_assets.serving.logs import log_as_json
log_as_json()
logging.getLogger("mlops_assets.serving.app").warning("release %s is refused", "m:1", extra={"request_id": "r-1"})
logging.getLogger("bentoml.serve").info("quotes \\" and\\nlines")
"""


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("mlops_assets.x", logging.ERROR, "f.py", 1, "%d of %s", (3, "m"), None)
    vars(made).update(extra)
    return made


def test_a_line_says_when_where_what_and_what_else_was_given() -> None:
    line = json.loads(JsonFormatter().format(record(request_id="r-1", ms=1.5)))
    assert (line["level"], line["logger"], line["message"]) == ("error", "mlops_assets.x", "3 of m")
    assert (line["request_id"], line["ms"]) == ("r-1", 1.5)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 60


def test_an_error_brings_its_traceback() -> None:
    try:
        {}["nothing"]
    except KeyError:
        failed = record()
        failed.exc_info = sys.exc_info()
    line = json.loads(JsonFormatter().format(failed))
    assert line["traceback"].endswith("KeyError: 'nothing'")


def test_a_process_writes_only_json_lines() -> None:
    """Ours and BentoML's alike, each on one line."""
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["release m:1 is refused", 'quotes " and\nlines']
    assert lines[0]["request_id"] == "r-1"
