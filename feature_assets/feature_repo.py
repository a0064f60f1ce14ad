"""The Feast repository: every declaration of the team folders as native Feast objects.

Feast finds objects as attributes of this module, so each becomes one, under its kind and name.
"""

from mlops_assets import feast_objects
from mlops_assets.catalog import gather
from resources.environment import resources_for

catalog = gather()
objects = feast_objects.compile(catalog.views, catalog.models.values(), resources_for()["lake"])
globals().update({f"{type(item).__name__}_{item.name}": item for item in objects})
