"""`python -m mlops_assets.adoption.snapshot REPOSITORY FILE`: a registry, asked by Feast, as a file.

A process of its own: Feast takes ten seconds to import, a registry class may be code of the repository, and
whatever goes wrong ends here as an exit code and what was said.
"""

import sys
from pathlib import Path


def main(root: str, target: str) -> None:
    """Write the registry's message to `target`."""
    from mlops_assets.adoption.repository import FeastRepository

    with FeastRepository.at(root).store() as store:
        store.refresh_registry()
        Path(target).write_bytes(store.registry.proto().SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
