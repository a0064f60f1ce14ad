"""What a Spark task does for the compute of kind `spark`: it starts a process and says how that one ended.

A process of its own has an exit code, and takes no worker of Spark's with it. It ends with the task.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def errand(asked: Mapping[str, Any]) -> dict[str, Any]:
    """How the process ended. A task that Spark begins again by itself does nothing: who asked decides about that."""
    from pyspark import TaskContext

    from resources.compute.subprocess import kills_for_memory

    task = TaskContext.get()
    if task is not None and task.attemptNumber():
        return {"again": True}
    starved = kills_for_memory()
    command = [asked["python"] or sys.executable, "-m", asked["module"]]
    ended = subprocess.run(command, cwd=asked["project"], env={**os.environ, **asked["environment"]}, check=False)
    return {"code": ended.returncode, "starved": kills_for_memory() > starved}
