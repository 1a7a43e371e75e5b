"""What deploy/kubernetes holds: the files as they are, and what kustomize makes of them."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.deploy.queries import DEPLOY

KUBERNETES: Final = DEPLOY / "kubernetes"
# Each is what a person applies.
TARGETS: Final = ("cpu", "gpu", "kserve", "rayservice")
CONFINED: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_ALLOWED_VOLUMES: Final = {"secret", "emptyDir", "persistentVolumeClaim", "configMap"}
_KUSTOMIZATION: Final = "kustomization.yaml"

Document = dict[str, Any]


def files(*, parts: bool = False) -> list[Path]:
    """The files that kustomizations name as resources; or those that are only parts: patches, and what maps hold."""
    named = set()
    for path in KUBERNETES.rglob(_KUSTOMIZATION):
        kustomization = yaml.safe_load(path.read_text(encoding="utf-8"))
        if parts:
            named |= {
                path.parent / name
                for map_ in kustomization.get("configMapGenerator", ())
                for name in map_.get("files", ())
            }
            named |= {path.parent / patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch}
        else:
            named |= {path.parent / name for name in kustomization.get("resources", ()) if name.endswith(".yaml")}
    return sorted(named)


def load(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(target: str) -> list[Document]:
    """Render one of `TARGETS` with kustomize; skip where it is not at hand."""
    return load(build(KUBERNETES / target))


def build(folder: Path) -> str:
    """Render a folder, as `kubectl apply -k` does before it sends anything."""
    command = _kustomize()
    if command is None:
        pytest.skip("neither kubectl nor kustomize is on PATH; docs/kubernetes.md says what is then not tested")
    return _run(*command, str(folder))


def one(documents: list[Document], kind: str) -> Document:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def pods(document: Document) -> Iterator[Document]:
    """The specs of the pods that an object makes."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment":
            yield spec["template"]["spec"]
        case "InferenceService":
            yield spec["predictor"]
        case "RayService":
            cluster = spec["rayClusterConfig"]
            yield cluster["headGroupSpec"]["template"]["spec"]
            for group in cluster["workerGroupSpecs"]:
                yield group["template"]["spec"]


def is_restricted(pod: Document) -> bool:
    """Whether a pod fits the Pod Security Standard `restricted`, and has read-only roots beside."""
    context, containers = pod["securityContext"], [*pod["containers"], *pod.get("initContainers", ())]
    return (
        context["runAsNonRoot"] is True
        and context["seccompProfile"] == {"type": "RuntimeDefault"}
        and not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        and {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= _ALLOWED_VOLUMES
        and all(container["securityContext"] == CONFINED for container in containers)
    )


def mappings(value: object) -> Iterator[Document]:
    """Every mapping in a document, the outermost first."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from mappings(part)
    elif isinstance(value, list):
        for part in value:
            yield from mappings(part)


def environment(documents: list[Document]) -> dict[str, str]:
    """The variables of a target's containers: from the ConfigMap and from the container itself."""
    found: dict[str, str] = {}
    for document in documents:
        if document["kind"] == "ConfigMap":
            found |= document["data"]
        for pod in pods(document):
            for container in pod["containers"]:
                found |= {entry["name"]: entry.get("value", "") for entry in container.get("env", ())}
    return found


def seconds(duration: str) -> float:
    """Of Prometheus's durations in one unit, as 15s or 1m."""
    match = re.fullmatch(r"(\d+)(s|m)", duration)
    assert match, duration
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


@cache
def _kustomize() -> tuple[str, ...] | None:
    if shutil.which("kustomize"):
        return ("kustomize", "build")
    return ("kubectl", "kustomize") if shutil.which("kubectl") else None


@cache
def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - our own words
    assert done.returncode == 0, done.stderr
    return done.stdout
