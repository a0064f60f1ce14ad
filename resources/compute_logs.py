"""What steps print, kept in the object store that MLOPS_S3_URL names; AWS_* give endpoint, region and credentials.

Dagster's own manager wants the bucket and the prefix written into dagster.yaml. Read from the address instead, the
file is the same for everybody, and a cluster mounts it as it lies.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from dagster._serdes import ConfigurableClassData
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from resources.environment import S3, address

OURS = ("bucket", "prefix")
FOLDER = "compute_logs"


class S3ComputeLogs(S3ComputeLogManager):
    """Named in `dagster.yaml` as `compute_logs`; the logs are under `compute_logs/` of the address."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        theirs = super().config_type()  # type: ignore[no-untyped-call]
        return {name: kind for name, kind in theirs.items() if name not in OURS}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        store = urlsplit(address(S3))
        prefix = f"{store.path}/{FOLDER}".lstrip("/")
        beside = {"local_dir": tempfile.gettempdir(), **config_value}  # Dagster's own does not ask TMPDIR
        return cls(inst_data=inst_data, bucket=store.netloc, prefix=prefix, **beside)
