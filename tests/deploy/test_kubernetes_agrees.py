"""The objects under deploy/kubernetes, against the code, the Dockerfile, the Compose files, and each other."""

import os
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from app.main import create_app
from app.metrics import Metrics
from app.security.keys import AccessKeys, new_key
from app.server import _LAST_WAIT_S
from app.settings import PREFIX, Settings, unknown_variables
from tests.deploy.manifests import Document, environment, is_restricted, one, pods, rendered, seconds
from tests.deploy.queries import ROOT, named

DOCKERFILE: Final = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVERS: Final = ("cpu", "gpu", "kserve")
UNITS: Final = {"Mi": 2**20, "Gi": 2**30}
# A loaded model and the process around it; measured: 0.5 GiB on a CPU.
MODEL_BYTES: Final = 2**30


@pytest.fixture(params=["cpu", "gpu"])
def overlay(request: pytest.FixtureRequest) -> list[Document]:
    return rendered(request.param)


@pytest.fixture(params=SERVERS)
def target(request: pytest.FixtureRequest) -> list[Document]:
    return rendered(request.param)


@pytest.fixture
def settings(target: list[Document], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The service's settings as a pod has them: what the image sets, then what the objects do."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in (dict(re.findall(rf"({PREFIX}\w+)=(\S+)", DOCKERFILE)) | environment(target)).items():
        monkeypatch.setenv(name, value)
    return Settings()


def pod_of(documents: list[Document]) -> Document:
    (pod,) = [pod for document in documents for pod in pods(document)]
    return pod


def container_of(documents: list[Document]) -> Document:
    (container,) = pod_of(documents)["containers"]
    return dict(container)


def size(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def test_the_settings_are_settings(target: list[Document], settings: Settings) -> None:
    assert unknown_variables(environment(target)) == []
    compose = {"cuda": "docker-compose.yml", "cpu": "deploy/compose.cpu.yml"}[settings.device]
    service = yaml.safe_load((ROOT / compose).read_text(encoding="utf-8").replace("!override", ""))["services"]
    assert container_of(target)["image"] == service["leukoscope"]["image"]
    assert service["leukoscope"]["environment"]["LEUKOSCOPE_DEVICE"] == settings.device


def test_the_keys_of_the_secret_are_read(target: list[Document], settings: Settings, tmp_path: Path) -> None:
    (volume,) = [volume["secret"] for volume in pod_of(target)["volumes"] if "secret" in volume]
    (mount,) = [mount for mount in container_of(target)["volumeMounts"] if mount["name"] == "keys"]
    assert settings.api_keys_file in [Path(mount["mountPath"]) / item["path"] for item in volume["items"]]
    _, key = new_key("ward-3")
    file = tmp_path / "api-keys"
    file.write_text(key.setting + "\n", encoding="utf-8")
    pod = settings.model_copy(update={"api_keys_file": file})
    assert AccessKeys.of(pod).clients == (key,)
    assert AccessKeys.of(pod).admins == ()


def test_neighbours_set_no_variables(target: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pod_of(target)["enableServiceLinks"]
    # What a kubelet would set for a Service named leukoscope, and what the service makes of it.
    assert unknown_variables(["LEUKOSCOPE_SERVICE_HOST"])
    monkeypatch.setenv("LEUKOSCOPE_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ValidationError):
        Settings()


def test_ports_agree(target: list[Document], settings: Settings) -> None:
    (port,) = container_of(target)["ports"]
    assert str(port["containerPort"]) in re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE)
    assert port["containerPort"] == settings.port
    probes = [container_of(target)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} <= {port["name"], port["containerPort"]}


def test_service_monitor_and_policy_name_the_port(overlay: list[Document]) -> None:
    (port,) = container_of(overlay)["ports"]
    (published,) = one(overlay, "Service")["spec"]["ports"]
    assert published["targetPort"] == port["name"]
    (endpoint,) = one(overlay, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == published["name"]
    ingress = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert {entry["port"] for rule in ingress for entry in rule["ports"]} == {port["name"]}


def test_paths_are_routes(target: list[Document], tmp_path: Path) -> None:
    paths = create_app(Settings(models_dir=tmp_path)).openapi()["paths"]
    container = container_of(target)
    for probe in ("startup", "liveness", "readiness"):
        assert "get" in paths[container[f"{probe}Probe"]["httpGet"]["path"]]
    assert container["livenessProbe"]["httpGet"]["path"] in ("/livez", "/v2/health/live")
    assert container["readinessProbe"]["httpGet"] == container["startupProbe"]["httpGet"]
    assert container["readinessProbe"]["httpGet"]["path"] in ("/readyz", "/v2/health/ready")


def test_metrics_are_scraped_where_they_are(overlay: list[Document], tmp_path: Path) -> None:
    (endpoint,) = one(overlay, "ServiceMonitor")["spec"]["endpoints"]
    assert "get" in create_app(Settings(models_dir=tmp_path)).openapi()["paths"][endpoint["path"]]
    assert seconds(endpoint["scrapeTimeout"]) <= seconds(endpoint["interval"])


def test_a_stop_has_the_time_that_it_needs(target: list[Document], settings: Settings) -> None:
    hook_s = container_of(target)["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container_of(target)["readinessProbe"]
    # Also where a balancer goes by the probe alone.
    assert hook_s >= 5
    needed_s = hook_s + settings.drain_delay_s + settings.drain_timeout_s + _LAST_WAIT_S
    assert pod_of(target)["terminationGracePeriodSeconds"] > needed_s
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= hook_s


def test_the_user_is_the_images(target: list[Document]) -> None:
    match = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert match
    context = pod_of(target)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(match[1]), int(match[2]))
    assert context["fsGroup"] == int(match[2])


def test_pods_may_do_nothing(target: list[Document]) -> None:
    pod = pod_of(target)
    assert is_restricted(pod)
    assert not pod["automountServiceAccountToken"]


def test_the_namespace_keeps_the_standard(overlay: list[Document]) -> None:
    labels = one(overlay, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_what_is_written_lies_in_memory(target: list[Document]) -> None:
    volumes = {volume["name"]: volume for volume in pod_of(target)["volumes"]}
    writable = [mount for mount in container_of(target)["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]  # noqa: S108 - a path in the container
    assert all(volumes[mount["name"]]["emptyDir"]["medium"] == "Memory" for mount in writable)


def test_memory_is_enough_for_the_settings(target: list[Document], settings: Settings) -> None:
    """By the formula of docs/deployment.md, with a decoding thread for each CPU."""
    limits = container_of(target)["resources"]["limits"]
    (tmp,) = [volume["emptyDir"] for volume in pod_of(target)["volumes"] if "emptyDir" in volume]
    decoding = int(limits["cpu"]) * 12 * settings.max_image_pixels
    needed = settings.queue_limit_bytes + decoding + MODEL_BYTES + size(tmp["sizeLimit"])
    assert size(limits["memory"]) >= needed


def test_a_pod_gets_the_gpu_that_it_asks_for_and_no_other(target: list[Document], settings: Settings) -> None:
    limits = container_of(target)["resources"]["limits"]
    if settings.device == "cuda":
        assert limits["nvidia.com/gpu"] == "1"
        assert settings.gpus == (0,)
        assert "NVIDIA_VISIBLE_DEVICES" not in environment(target)
    else:
        assert "nvidia.com/gpu" not in limits
        assert environment(target)["NVIDIA_VISIBLE_DEVICES"] == "void"
        assert container_of(target)["resources"]["requests"] == limits


def test_all_mean_the_same_pods(overlay: list[Document]) -> None:
    spec = one(overlay, "Deployment")["spec"]
    labels, chosen = spec["template"]["metadata"]["labels"], spec["selector"]["matchLabels"]
    assert chosen.items() <= labels.items()
    assert one(overlay, "Service")["spec"]["selector"] == chosen
    assert one(overlay, "ServiceMonitor")["spec"]["selector"]["matchLabels"] == chosen
    assert chosen.items() <= one(overlay, "Service")["metadata"]["labels"].items()
    assert one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == chosen
    assert one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == chosen
    for spread in spec["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == chosen


def test_a_changed_setting_is_rolled_out(overlay: list[Document]) -> None:
    (source,) = container_of(overlay)["envFrom"]
    assert source["configMapRef"]["name"] == one(overlay, "ConfigMap")["metadata"]["name"]
    assert re.fullmatch(r"leukoscope-settings-\w{10}", source["configMapRef"]["name"])


def test_the_autoscaler_asks_for_a_metric_that_is_there(overlay: list[Document]) -> None:
    (trigger,) = one(overlay, "ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    types = {family.name: family.type for family in text_string_to_metric_families(Metrics().text().decode())}
    metrics, _ = named(query)
    assert list(metrics) == ["leukoscope_queue_depth"]
    assert types["leukoscope_queue_depth"] == "gauge"
    service = one(overlay, "Service")["metadata"]
    selector = dict(re.findall(r'(\w+)="([^"]*)"', query))
    assert selector == {"namespace": service["namespace"], "job": service["name"]}


def test_the_autoscaler_agrees_with_the_rest(overlay: list[Document]) -> None:
    deployment, scaled = one(overlay, "Deployment"), one(overlay, "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # or each `kubectl apply` would set them back
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] < scaled["minReplicaCount"]
    assert scaled["minReplicaCount"] <= scaled["maxReplicaCount"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    (endpoint,) = one(overlay, "ServiceMonitor")["spec"]["endpoints"]
    window = re.search(r"\[(\w+)\]", trigger["metadata"]["query"])
    assert window
    assert seconds(window[1]) >= 2 * seconds(endpoint["interval"])
    # Long before requests are refused.
    assert 0 < int(trigger["metadata"]["threshold"]) <= Settings().queue_limit / 8


def test_volumes_of_components_lie_where_the_image_looks() -> None:
    components = ROOT / "deploy" / "kubernetes" / "components"

    def container(name: str) -> dict[str, Any]:
        patch = yaml.safe_load((components / name / "kustomization.yaml").read_text(encoding="utf-8"))["patches"][0]
        return dict(yaml.safe_load(patch["patch"])["spec"]["template"]["spec"]["containers"][0])

    workdir = re.findall(r"^WORKDIR (\S+)", DOCKERFILE, re.MULTILINE)[-1]
    (models,) = container("models-volume")["volumeMounts"]
    assert Path(models["mountPath"]) == Path(workdir) / Settings().models_dir
    assert models["readOnly"]
    (audit,) = container("audit-log")["volumeMounts"]
    assert f"-o 10001 -g 10001 {audit['mountPath']}\n" in DOCKERFILE
    variables = {entry["name"]: entry.get("value") for entry in container("audit-log")["env"]}
    assert unknown_variables(variables) == []
    assert str(variables["LEUKOSCOPE_AUDIT_LOG"]).startswith(audit["mountPath"] + "/$(POD_NAME)")


def test_kserves_pod_is_the_deployments(tmp_path: Path) -> None:
    served, deployed = rendered("kserve"), rendered("cpu")
    for field in ("volumes", "terminationGracePeriodSeconds", "enableServiceLinks", "automountServiceAccountToken"):
        assert pod_of(served)[field] == pod_of(deployed)[field]
    for field in ("image", "lifecycle", "resources", "securityContext", "volumeMounts"):
        assert container_of(served)[field] == container_of(deployed)[field]
    assert environment(served) == environment(deployed) | {"PROTOCOL": "v2"}
    assert container_of(served)["name"] == "kserve-container"
    paths = create_app(Settings(models_dir=tmp_path)).openapi()["paths"]
    assert "post" in paths["/v2/models/{model}/infer"]
