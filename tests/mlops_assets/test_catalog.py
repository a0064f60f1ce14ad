"""The catalog: what the team folders declare, found, judged together, and asked for by name."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets import Entity, Float64, Labels, String, feature_view, labels, source
from mlops_assets.catalog import (
    Catalog,
    UnknownDeclarationError,
    asset_key,
    gather,
    gather_python,
    team_modules,
)
from mlops_assets.declarations import DeclarationError, FeatureView, Source
from mlops_assets.pipeline import table_definitions

shop = Entity("shop", "shop_id")


@source(schema={"shop_id": String("Shop")}, key=["shop_id"], team="shops")
def orders():
    """Orders."""


@feature_view(entities=[shop], schema={"spend": Float64("Money", unit="EUR"), "visits": Float64}, team="shops")
def shop_week(orders):
    """A shop's week."""


@feature_view(entities=[shop], schema={"trend": Float64("Change", unit="EUR")}, team="shops")
def shop_trend(shop_week):
    """How a shop's week differs from the one before."""


@labels(key="order_id", entities=[shop], targets={"late": Float64("Late")}, team="shops")
def deliveries(orders):
    """Deliveries."""


def test_a_table_is_published_under_its_team_and_name():
    """A feature view's rows are what training reads; the name comes last, where Dagster's graph shows it."""
    keys = [asset_key(table).to_user_string() for table in (orders, deliveries, shop_week)]
    assert keys == ["shops/orders", "shops/deliveries", "shops/offline/shop_week"]


def test_a_parameter_names_the_table_that_is_read():
    """A source, or a view made earlier; of the same team."""
    catalog = Catalog.of([shop_trend, orders, shop_week])
    assert list(catalog.inputs(shop_trend)) == [("shop_week", shop_week)]
    assert list(catalog.inputs(shop_week)) == [("orders", orders)]
    assert list(catalog.inputs(orders)) == []


def test_a_table_of_another_team_is_not_in_reach():
    """Teams share features through models, not by reading each other's raw tables."""

    @feature_view(entities=[shop], schema={"x": Float64}, team="others")
    def theirs(orders):
        """Theirs."""

    says = r"feature view 'others/theirs': parameter is 'orders' \(allowed: none\)"
    with pytest.raises(DeclarationError, match=says):
        Catalog.of([orders, theirs])


def test_a_view_that_reads_itself_is_refused():
    @feature_view(entities=[shop], schema={"x": Float64}, team="shops")
    def circular(circular):
        """Itself."""

    with pytest.raises(DeclarationError, match=r"parameter is 'circular' \(allowed: orders\)"):
        Catalog.of([orders, circular])


def test_a_view_over_a_view_has_lineage():
    """From the raw table through the one to the other, and each online, with its snapshot."""
    graph = table_definitions(Catalog.of([orders, shop_week, shop_trend])).assets or ()
    parents = {
        asset.key.to_user_string(): {key.to_user_string() for key in asset.asset_deps[asset.key]} for asset in graph
    }
    assert parents == {
        "shops/orders": set(),
        "shops/offline/shop_week": {"shops/orders"},
        "shops/offline/shop_trend": {"shops/offline/shop_week"},
        "shops/online/shop_week": {"shops/offline/shop_week"},
        "shops/online/shop_trend": {"shops/offline/shop_trend"},
        "shops/snapshot/shop_week": {"shops/online/shop_week"},
        "shops/snapshot/shop_trend": {"shops/online/shop_trend"},
    }


def test_the_same_object_found_twice_is_one_declaration():
    """A module that imports another's view declares nothing new."""
    assert len(Catalog.of([orders, shop_week, orders, shop_week]).tables) == 2


@pytest.mark.parametrize("kind", [Source, FeatureView, Labels], ids=lambda kind: kind.kind)
def test_one_name_has_one_declaration_whatever_its_kind(kind):
    """Keys, files and Feast names are made of it."""
    twin = {Source: orders, FeatureView: shop_week, Labels: deliveries}[kind]
    with pytest.raises(DeclarationError, match=rf"{kind.kind} 'shops/shop_week'.*one declaration per name.*Rename one"):
        Catalog.of([orders, shop_week, replace(twin, name="shop_week")])


def test_what_is_asked_for_by_name_is_found_or_the_nearest_is_named():
    catalog = Catalog.of([orders, shop_week, deliveries])
    assert catalog.view("shops/shop_week") is shop_week
    assert catalog.labels("shops/deliveries") is deliveries
    for ask, says in (
        (
            lambda: catalog.view("shops/shop_weak"),
            r"feature view 'shops/shop_weak' \(known: shops/shop_week\). Did you",
        ),
        (lambda: catalog.view("shops/orders"), r"feature view 'shops/orders'"),
        (lambda: catalog.labels("shops/delivery"), r"label table.*Did you mean 'shops/deliveries'"),
        (lambda: catalog.model("shops/late"), r"no model 'shops/late' \(known: none\)"),
    ):
        with pytest.raises(UnknownDeclarationError, match=says):
            ask()


@given(
    st.lists(st.sampled_from(["spend", "visits"]), min_size=1, max_size=2, unique=True), st.sampled_from([",", ", "])
)
def test_a_reference_selects_features_in_the_order_written(names: list[str], comma: str):
    """`team/view:a,b`, as Feast writes them; without names all of them."""
    catalog = Catalog.of([orders, shop_week])
    assert catalog.features(f"shops/shop_week:{comma.join(names)}").features == tuple(names)
    assert catalog.features("shops/shop_week").features == ("spend", "visits")


# -- folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """`folders({"team/file.py": text})`: a package of team folders that can be gathered; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"features_of_{abs(hash(str(tmp_path)))}"

    def write(files: dict[str, str]) -> str:
        for path, text in {"__init__.py": "", "team/__init__.py": "", **files}.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        return name

    return write


SOURCE = '''
from mlops_assets import Float64, source

@source(team="team", key=["id"], schema={"id": Float64})
def raw():
    """Raw rows."""
'''


def test_what_a_team_folder_declares_is_gathered(folders):
    """Every file of it, its `__init__` too; files beside the folders, as Feast's repo file, are not."""
    name = folders({
        "team/rows.py": SOURCE,
        "team/__init__.py": SOURCE.replace("def raw", "def early"),
        "beside.py": "raise AssertionError('not a team folder')",
        "team/deeper/__init__.py": "raise AssertionError('one level is enough')",
    })  # fmt: skip
    assert set(gather_python((name,)).tables) == {"team/raw", "team/early"}
    assert gather((name,)) is gather_python((name,)), "without components they are the same"


def test_an_error_in_a_teams_file_is_that_files(folders):
    """Not swallowed, and not turned into a missing declaration."""
    name = folders({"team/broken.py": "from nowhere import nothing"})
    with pytest.raises(ModuleNotFoundError, match="nowhere") as broken:
        gather_python((name,))
    assert any(Path(str(entry.path)).name == "broken.py" for entry in broken.traceback)


def test_other_components_are_loaded_as_they_are(folders, tmp_path):
    """A `defs.yaml` of any other type gives its own definitions, beside ours."""
    name = folders({
        "team/rows.py": SOURCE,
        "team/plain/defs.yaml": """
            type: dagster.PythonScriptComponent
            attributes:
              execution: {path: script.py}
              assets: [{key: plain}]
        """,
        "team/plain/script.py": "print('a script that somebody had already')",
    })  # fmt: skip
    (defs,) = gather((name,)).components
    assert [spec.key for spec in defs.resolve_all_asset_specs()] == [dg.AssetKey("plain")]


def test_gathering_is_done_once():
    """Definitions, commands and sensors of a process share it."""
    assert gather() is gather()
    assert {module.__name__ for module in team_modules(sys.modules["feature_assets"])} >= {
        "feature_assets.flights",
        "feature_assets.flights.weather",
    }
