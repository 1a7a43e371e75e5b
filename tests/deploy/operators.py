"""Objects of KServe and KubeRay, as far as deploy/ uses them; their pods are Kubernetes' own.

No package of a registry has these two as schemas, so the fields around the pods are written down here, after the
types in the projects' own repositories: `PredictorSpec` and `ComponentExtensionSpec` of kserve/kserve
(pkg/apis/serving/v1beta1), `RayServiceSpec`, `RayClusterSpec` and its groups of ray-project/kuberay
(ray-operator/apis/ray/v1). What is not here is refused, be it a field of theirs or not.
"""

from typing import Annotated, Literal

from cloudcoil.apimachinery import ObjectMeta
from cloudcoil.models.kubernetes.apps.v1 import DeploymentStrategy
from cloudcoil.models.kubernetes.core.v1 import PodSpec, PodTemplateSpec, ResourceRequirements, SecurityContext
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Count = Annotated[int, Field(ge=0)]


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


class Predictor(PodSpec):
    """A custom predictor: a pod, and how KServe runs it."""

    model_config = ConfigDict(alias_generator=to_camel)

    min_replicas: Count | None = None
    max_replicas: Count | None = None
    scale_target: int | None = None
    scale_metric: Literal["cpu", "memory", "concurrency", "rps"] | None = None
    scale_metric_type: Literal["Utilization", "AverageValue"] | None = None
    container_concurrency: Count | None = None
    timeout: int | None = None
    canary_traffic_percent: int | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deployment_strategy: DeploymentStrategy | None = None


class InferenceServiceSpec(Camel):
    predictor: Predictor


class InferenceService(Camel):
    api_version: Literal["serving.kserve.io/v1beta1"]
    kind: Literal["InferenceService"]
    metadata: ObjectMeta
    spec: InferenceServiceSpec


class HeadGroup(Camel):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enable_ingress: bool | None = None
    ray_start_params: dict[str, str]  # newer versions do without; older ones demand it
    template: PodTemplateSpec


class WorkerGroup(Camel):
    group_name: str
    replicas: Count | None = None
    min_replicas: Count
    max_replicas: Count
    idle_timeout_seconds: Count | None = None
    num_of_hosts: Count | None = None
    ray_start_params: dict[str, str]  # newer versions do without; older ones demand it
    template: PodTemplateSpec


class AutoscalerOptions(Camel):
    version: Literal["v1", "v2"] | None = None
    resources: ResourceRequirements | None = None
    security_context: SecurityContext | None = None
    image: str | None = None
    image_pull_policy: str | None = None
    idle_timeout_seconds: Count | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None


class RayCluster(Camel):
    ray_version: str | None = None
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: AutoscalerOptions | None = None
    head_service_annotations: dict[str, str] | None = None
    suspend: bool | None = None
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] | None = None


class UpgradeStrategy(Camel):
    type: Literal["NewCluster", "None"]


class RayServiceSpec(Camel):
    # The config of `serve deploy`, as one string of YAML.
    serve_config: Annotated[str | None, Field(alias="serveConfigV2")] = None
    ray_cluster_config: RayCluster
    upgrade_strategy: UpgradeStrategy | None = None
    exclude_head_pod_from_serve_svc: bool | None = None


class RayService(Camel):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: ObjectMeta
    spec: RayServiceSpec
