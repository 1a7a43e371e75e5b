"""The objects under deploy/kubernetes, against the schemas of Kubernetes and of the operators."""

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import KUBERNETES, TARGETS, Document, build, files, load, mappings, one, rendered
from tests.deploy.queries import DEPLOY, ROOT
from tests.deploy.schemas import KINDS, faults

RESOURCES = [
    pytest.param(document, id=f"{path.parent.name}/{document['kind']}")
    for path in files()
    for document in load(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("document", RESOURCES)
def test_each_file_fits_its_schema(document: Document) -> None:
    assert faults(document) == []


@pytest.mark.parametrize("document", RESOURCES)
def test_an_unknown_field_is_noticed_wherever_it_stands(document: Document) -> None:
    for place in range(len(list(mappings(document)))):
        spoilt = copy.deepcopy(document)
        list(mappings(spoilt))[place]["unheardOf"] = 1
        assert faults(spoilt), list(mappings(document))[place]


def change(*path: str | int, to: Any) -> Callable[[Document], None]:
    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        if to is None:
            del document[path[-1]]
        else:
            document[path[-1]] = to

    return apply


CONTAINER = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", change("apiVersion", to="apps/v1beta1")),
        ("Deployment", change("metadata", to=None)),
        ("Deployment", change("spec", "selector", to=None)),
        ("Deployment", change(*CONTAINER, "name", to=None)),
        ("Deployment", change(*CONTAINER, "ports", 0, "containerPort", to="http")),
        ("Deployment", change(*CONTAINER, "readinessProbe", "httpGet", to={"path": "/readyz"})),
        ("Deployment", change(*CONTAINER, "livenessProbe", to={"httpGet": {"path": "/", "port": 1}, "periodSecs": 1})),
        ("Deployment", change(*CONTAINER, "securityContext", "runAsUser", to="10001")),
        ("Deployment", change(*CONTAINER, "securityContext", "capabilities", to=["ALL"])),
        ("Service", change("spec", "ports", 0, "port", to="80")),
        ("PodDisruptionBudget", change("spec", "maxUnavailable", to=[1])),
        ("NetworkPolicy", change("spec", "egress", to={})),
        ("ScaledObject", change("spec", "triggers", to=None)),
        ("ScaledObject", change("spec", "scaleTargetRef", to={"kind": "Deployment"})),
        ("ScaledObject", change("spec", "triggers", 0, "metadata", "threshold", to=32)),
        ("ServiceMonitor", change("spec", "endpoints", 0, "interval", to="a while")),
        ("ServiceMonitor", change("spec", "selector", to=None)),
        ("InferenceService", change("spec", "predictor", "minReplicas", to=-1)),
        ("InferenceService", change("spec", "predictor", "scaleMetric", to="queue")),
        ("InferenceService", change("spec", "predictor", "protocolVersion", to="v2")),
        ("InferenceService", change("spec", "predictor", "containers", 0, "env", 0, "value", to=2)),
        ("RayService", change("spec", "rayClusterConfig", "headGroupSpec", to=None)),
        ("RayService", change("spec", "rayClusterConfig", "workerGroupSpecs", 0, "groupName", to=None)),
        ("RayService", change("spec", "rayClusterConfig", "workerGroupSpecs", 0, "maxReplicas", to="8")),
        ("RayService", change("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus", to=0)),
        ("RayService", change("spec", "serveConfigV2", to={"applications": []})),
        ("PodMonitor", change("spec", "podMetricsEndpoints", 0, "interval", to="a while")),
    ],
)
def test_a_wrong_object_is_noticed(kind: str, spoil: Callable[[Document], None]) -> None:
    documents: list[Any] = [parameter.values[0] for parameter in RESOURCES]
    document = copy.deepcopy(next(document for document in documents if document["kind"] == kind))
    assert faults(document) == []
    spoil(document)
    assert faults(document)


def test_an_object_without_schema_is_noticed() -> None:
    assert faults({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}) == ["no schema of ('v1', 'Pod')"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_applied_fits_its_schemas(target: str) -> None:
    documents = rendered(target)
    assert {document["metadata"].get("namespace", "leukoscope") for document in documents} == {"leukoscope"}
    assert {f"{document['kind']}: {fault}" for document in documents for fault in faults(document)} == set()


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_overlay_has_all_that_makes_a_service(target: str) -> None:
    kinds = sorted(document["kind"] for document in rendered(target))
    others = {"InferenceService", "RayService", "PodMonitor", "PrometheusRule"}
    assert kinds == sorted({kind for _, kind in KINDS} - others)


def test_every_file_is_part_of_a_kustomization() -> None:
    there = {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"}
    assert there == set(files()) | set(files(parts=True))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("component", sorted(path.name for path in (KUBERNETES / "components").iterdir()))
def test_each_component_goes_with_each_overlay(tmp_path: Path, target: str, component: str) -> None:
    base = os.path.relpath(KUBERNETES, tmp_path.resolve())
    own = {"resources": [f"{base}/{target}"], "components": [f"{base}/components/{component}"]}
    if component in ("autoscaling", "monitoring"):  # both overlays have them
        own = {"resources": [f"{base}/base"], "components": [f"{base}/components/{component}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    documents = load(build(tmp_path))
    assert [fault for document in documents for fault in faults(document)] == []


def documented(language: str) -> list[str]:
    """The blocks of one language in docs/kubernetes.md."""
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_documented_overlay_of_a_site_can_be_rendered(tmp_path: Path) -> None:
    (block,) = [block for block in documented("yaml") if "kind: Kustomization" in block]
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "leukoscope").symlink_to(ROOT, target_is_directory=True)
    (site / "kustomization.yaml").write_text(block, encoding="utf-8")
    documents = load(build(site))
    assert [fault for document in documents for fault in faults(document)] == []
    deployment = one(documents, "Deployment")["spec"]["template"]["spec"]
    assert deployment["containers"][0]["image"].startswith("registry.example.org/leukoscope@sha256:")
    assert "LEUKOSCOPE_QUEUE_LIMIT" in one(documents, "ConfigMap")["data"]


def test_the_documented_line_makes_a_rule_of_the_alerts() -> None:
    alerts = (DEPLOY / "alerts.yml").read_text(encoding="utf-8")
    (line,) = [line for block in documented("sh") for line in block.splitlines() if "PrometheusRule" in line]
    head = re.search(r"printf '([^']*)'", line)
    assert head
    indented = "".join(f"  {text}" for text in alerts.splitlines(keepends=True))
    (rule,) = load(head[1].replace("\\n", "\n") + indented)
    assert faults(rule) == []
    assert rule["spec"] == yaml.safe_load(alerts)
