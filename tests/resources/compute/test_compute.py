"""Work goes out by name, JSON in and JSON out, on whatever kind of machine is configured."""

from __future__ import annotations

import pytest

from resources.compute import ComputeResource, EntrypointError, UnknownComputeError, kinds


@pytest.mark.parametrize("kind", kinds())
def test_work_is_called_by_name(kind: str) -> None:
    """The function named by the entrypoint gets the arguments; its JSON comes back."""
    run = ComputeResource(kind=kind).run
    assert run("copy:copy", {"rows": 3, "keys": ["a"]}) == {"rows": 3, "keys": ["a"]}


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize(
    "entrypoint", ["copy", "no_such_module:f", "copy.no.such:f", "copy:no_such", "copy:__name__", ":f"]
)
def test_an_entrypoint_that_is_none_is_named(kind: str, entrypoint: str) -> None:
    """No module, no function, nothing to call: the error quotes the entrypoint."""
    with pytest.raises(EntrypointError, match=entrypoint):
        ComputeResource(kind=kind).run(entrypoint, {})


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_only_json_travels(kind: str, value: object) -> None:
    """What could not cross to another machine is refused here too."""
    with pytest.raises(EntrypointError, match="not JSON"):
        ComputeResource(kind=kind).run("copy:copy", {"value": value})


@pytest.mark.parametrize("kind", kinds())
def test_the_works_own_error_is_raised(kind: str) -> None:
    """A failure inside the work arrives as itself."""
    with pytest.raises(KeyError, match="trainer"):
        ComputeResource(kind=kind).run("mlops_assets.training:train", {"out": "."})


def test_an_unknown_kind_lists_the_known() -> None:
    """A kind without a file is an error that names those that have one."""
    with pytest.raises(UnknownComputeError, match=r"'mainframe'.*local"):
        ComputeResource(kind="mainframe").run("copy:copy", {})
