"""What `kubectl apply -k` would be given, put together without kubectl, since few machines that test have it.

The folders only add to each other (no patches), so that gathering is all there is to it; where kubectl is, a test
holds that it comes to the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resources.environment import PROJECT

KUBERNETES = PROJECT / "deployment" / "kubernetes"
CHOICES = {"all": KUBERNETES, "external": KUBERNETES / "external", "kserve": KUBERNETES / "kserve"}
NAMELESS = {"Namespace"}  # in no namespace
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pods:
    """What a manifest makes pods of: who, with which labels, and their specification."""

    name: str
    kind: str
    replicas: int
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec["containers"], *self.spec.get("initContainers", ())]


@dataclass(frozen=True)
class Platform:
    """One choice of what is applied."""

    manifests: tuple[Manifest, ...]

    def of(self, *kinds: str) -> list[Manifest]:
        return [one for one in self.manifests if one["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    @property
    def pods(self) -> list[Pods]:
        """Every kind of pod that runs here; those of a run are the launcher's to make."""
        return [pods for one in self.manifests if (pods := _pods(one))]

    def pod(self, name: str) -> Pods:
        (found,) = [pods for pods in self.pods if pods.name == name]
        return found


def gathered(folder: Path, namespace: str | None = None) -> Iterator[Manifest]:
    """The manifests of a kustomization: those of its resources and components, and the ConfigMaps that it makes."""
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert not set(said) & {"patches", "patchesStrategicMerge", "namePrefix", "nameSuffix", "commonLabels"}
    namespace = said.get("namespace", namespace)
    for place in [*said.get("resources", ()), *said.get("components", ())]:
        path = folder / place
        yield from gathered(path, namespace) if path.is_dir() else _read(path, namespace)
    for made in said.get("configMapGenerator", ()):
        assert said["generatorOptions"]["disableNameSuffixHash"], "others name it"
        data = {name: (folder / name).read_text() for name in made.get("files", ())}
        for name in made.get("envs", ()):
            data |= settings_of(folder / name)
        yield _in(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data}, namespace
        )


def settings_of(path: Path) -> dict[str, str]:
    """What a file of NAME=value lines says."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def _read(path: Path, namespace: str | None) -> Iterator[Manifest]:
    for manifest in yaml.safe_load_all(path.read_text()):
        yield _in(manifest, namespace)


def _in(manifest: Manifest, namespace: str | None) -> Manifest:
    if namespace and manifest["kind"] not in NAMELESS:
        manifest["metadata"]["namespace"] = namespace
    return manifest


def _pods(manifest: Manifest) -> Pods | None:
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "StatefulSet"):
        template = spec["template"]
        return Pods(name, manifest["kind"], spec.get("replicas", 1), template["metadata"]["labels"], template["spec"])
    if manifest["kind"] == "InferenceService":
        return Pods(name, manifest["kind"], 1, spec["predictor"]["labels"], spec["predictor"])
    return None
