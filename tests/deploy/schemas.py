"""JSON schemas of Kubernetes' objects and of the operators', and what is wrong with an object by them.

The types of Kubernetes, KEDA and the Prometheus Operator come from the packages that cloudcoil makes of what these
projects publish; KServe's and KubeRay's from `operators`. As an API server does with strict validation, an unknown
field is a fault here.
"""

from functools import cache
from typing import Any, Final

import jsonschema_rs
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.kubernetes.apps.v1 import Deployment
from cloudcoil.models.kubernetes.core.v1 import ConfigMap, Namespace, Service, ServiceAccount
from cloudcoil.models.kubernetes.networking.v1 import NetworkPolicy
from cloudcoil.models.kubernetes.policy.v1 import PodDisruptionBudget
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor
from pydantic import BaseModel

from tests.deploy.operators import InferenceService, RayService

KINDS: Final[dict[tuple[str, str], type[BaseModel]]] = {
    ("v1", "ConfigMap"): ConfigMap,
    ("v1", "Namespace"): Namespace,
    ("v1", "Service"): Service,
    ("v1", "ServiceAccount"): ServiceAccount,
    ("apps/v1", "Deployment"): Deployment,
    ("policy/v1", "PodDisruptionBudget"): PodDisruptionBudget,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicy,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
    ("serving.kserve.io/v1beta1", "InferenceService"): InferenceService,
    ("ray.io/v1", "RayService"): RayService,
}


def faults(document: dict[str, Any]) -> list[str]:
    """Each fault as `path: what is wrong`; a kind that has no schema here is one."""
    kind = (str(document.get("apiVersion")), str(document.get("kind")))
    if kind not in KINDS:
        return [f"no schema of {kind}"]
    found = [
        f"{'.'.join(map(str, error.instance_path))}: {error.message}"
        for error in _validator(*kind).iter_errors(document)
    ]
    return found if document.get("metadata", {}).get("name") else [*found, "metadata.name: missing"]


@cache
def _validator(api_version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    schema = KINDS[api_version, kind].model_json_schema()
    return jsonschema_rs.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """Refuse unknown fields, and null where a field is only not given."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(part) for name, part in schema.items()}
    if isinstance(strict.get("properties"), dict) and strict.get("type") == "object":
        strict.setdefault("additionalProperties", False)
    if isinstance(strict.get("anyOf"), list):
        strict["anyOf"] = [part for part in strict["anyOf"] if part != {"type": "null"}]
        # Alone, so that a fault names its own place instead of the whole alternative.
        if len(strict["anyOf"]) == 1:
            strict["allOf"] = strict.pop("anyOf")
    return strict
