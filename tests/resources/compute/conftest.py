"""One Ray cluster of this machine's own for a module: starting one takes seconds."""

import os
from collections.abc import Iterator

import pytest

from resources.compute import Work
from resources.compute.ray import cluster


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """Work on Ray finds this cluster, as several works of one run do."""
    if "RAY_ADDRESS" in os.environ:
        pytest.fail("RAY_ADDRESS names a cluster; these tests start their own. Unset it.")
    with cluster("", Work("none:none", {})):
        yield
