"""The RayService under deploy/kubernetes, against the application, its Serve config, the locks and the Deployment."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from app.settings import Settings, unknown_variables
from tests.deploy.manifests import KUBERNETES, Document, environment, is_restricted, one, pods, rendered
from tests.deploy.queries import DEPLOY, ROOT

CONFIG: Final = KUBERNETES / "rayservice" / "serve.yaml"


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return rendered("rayservice")


@pytest.fixture(scope="module")
def cluster(documents: list[Document]) -> Document:
    return dict(one(documents, "RayService")["spec"]["rayClusterConfig"])


def serve_config() -> Document:
    return dict(yaml.safe_load(CONFIG.read_text(encoding="utf-8")))


def deployments() -> Iterator[Document]:
    for application in serve_config()["applications"]:
        yield from application.get("deployments", ())


def is_defined(import_path: str) -> bool:
    """Whether a module has the name that stands behind its colon; nothing of Ray is imported."""
    module, _, name = import_path.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # not even the package around it
        return False
    if spec is None or spec.origin is None:
        return False
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return name in {getattr(node, "name", None) for node in tree.body}


def locked(package: str, lock: str) -> str:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{package}==(\S+)", text, re.MULTILINE)
    return str(version)


def test_serve_gets_the_config(documents: list[Document]) -> None:
    spec = one(documents, "RayService")["spec"]
    assert spec["serveConfigV2"] == CONFIG.read_text(encoding="utf-8")
    assert [document for document in documents if document["kind"] == "ConfigMap"] == []


def test_the_config_is_that_of_serve_deploy() -> None:
    """But for the address, and for settings: here they are in the pods' environment."""
    elsewhere = yaml.safe_load((DEPLOY / "ray" / "serve.yml").read_text(encoding="utf-8"))
    here = serve_config()
    assert here["http_options"] == elsewhere["http_options"] | {"host": "0.0.0.0"}  # noqa: S104 - in a pod
    for application in elsewhere["applications"]:
        application.pop("args", None)
    assert here["applications"] == elsewhere["applications"]
    assert here["proxy_location"] == elsewhere["proxy_location"]


def test_the_config_fits_serves_own_schema() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="needs Ray: make setup-ray")
    schema.ServeDeploySchema.model_validate(serve_config())


def test_what_the_config_names_is_there() -> None:
    for application in serve_config()["applications"]:
        assert is_defined(application["import_path"]), application["import_path"]
        # Settings come from the environment, which has the keys.
        assert "args" not in application
    for deployment in deployments():
        policy = deployment["autoscaling_config"].get("policy")
        assert policy is None or is_defined(policy["policy_function"])
    assert not is_defined("app.cluster.service:no_such_name")
    assert not is_defined("app.no_such_module:application")


def test_all_pods_have_the_same_settings(documents: list[Document], cluster: Document) -> None:
    found = environment(documents)
    assert unknown_variables(found) == []
    assert is_defined(found["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"])
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    (first, *others) = [group["template"]["spec"]["containers"][0] for group in groups]
    for other in others:
        assert (other["env"], other["image"]) == (first["env"], first["image"])


def test_the_image_has_the_clusters_ray(cluster: Document) -> None:
    flavour = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"].removeprefix("leukoscope:")
    assert locked("ray", f"image-{flavour}.txt") == cluster["rayVersion"] == locked("ray", "ray.txt")
    # A CPU image holds ONNX Runtime's CPU build, as the one without Ray does.
    assert locked("onnxruntime", f"image-{flavour}.txt") == locked("onnxruntime", "image-cpu.txt")


def test_pods_may_do_nothing(documents: list[Document], cluster: Document) -> None:
    specs = [pod for document in documents for pod in pods(document)]
    assert len(specs) == 1 + len(cluster["workerGroupSpecs"])
    (deployed,) = pods(one(rendered("cpu"), "Deployment"))
    for pod in specs:
        assert is_restricted(pod)
        assert not pod["enableServiceLinks"]
        user = {name: pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
        assert user.items() <= deployed["securityContext"].items()
        assert [volume for volume in pod["volumes"] if "secret" in volume] == [
            volume for volume in deployed["volumes"] if "secret" in volume
        ]
        assert all(volume["emptyDir"]["medium"] == "Memory" for volume in pod["volumes"] if "emptyDir" in volume)
    # The head's autoscaler talks to the cluster; the workers, which see pictures, do not.
    assert not any(group["template"]["spec"]["automountServiceAccountToken"] for group in cluster["workerGroupSpecs"])


def test_all_mean_the_same_pods_and_ports(documents: list[Document], cluster: Document) -> None:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    labels = [group["template"]["metadata"]["labels"] for group in groups]
    names = {port["name"] for pod in pods(one(documents, "RayService")) for port in pod["containers"][0]["ports"]}
    policy, budget = one(documents, "NetworkPolicy")["spec"], one(documents, "PodDisruptionBudget")["spec"]
    monitor = one(documents, "PodMonitor")["spec"]
    selectors = [policy["podSelector"], budget["selector"], monitor["selector"]]
    assert all(selector["matchLabels"] == label for selector in selectors for label in labels)
    assert {port["port"] for rule in policy["ingress"] for port in rule.get("ports", ())} <= names
    assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= names


def test_rays_other_ports_are_for_ray_alone(documents: list[Document]) -> None:
    """They run what they are sent, and ask for no key."""
    for rule in one(documents, "NetworkPolicy")["spec"]["ingress"]:
        open_ports = {port["port"] for port in rule.get("ports", ())}
        senders = [sender.get("podSelector", {}).get("matchLabels", {}) for sender in rule["from"]]
        assert open_ports in ({"serve"}, {"metrics"}) or all(
            labels.get("app.kubernetes.io/component") == "ray"
            or labels.get("app.kubernetes.io/name") == "kuberay-operator"
            for labels in senders
        )


def test_requests_go_to_the_port_of_serve(cluster: Document) -> None:
    options = serve_config()["http_options"]
    for group in cluster["workerGroupSpecs"]:
        ports = {port["name"]: port["containerPort"] for port in group["template"]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == options["port"]
    assert options["host"] == "0.0.0.0"  # noqa: S104 - in a pod
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_a_worker_has_room_for_one_replica_of_each(cluster: Document) -> None:
    wanted = [deployment["ray_actor_options"] for deployment in deployments()]
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert sum(options["num_cpus"] for options in wanted) == int(limits["cpu"])
        assert sum(options.get("num_gpus", 0) for options in wanted) <= int(limits.get("nvidia.com/gpu", 0))
    replicas = [deployment["autoscaling_config"] for deployment in deployments()]
    (group,) = cluster["workerGroupSpecs"]
    assert all(group["minReplicas"] >= scaling["min_replicas"] for scaling in replicas)
    assert all(group["maxReplicas"] >= scaling["max_replicas"] for scaling in replicas)


def test_a_stop_has_the_time_that_it_needs(cluster: Document) -> None:
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        hook_s = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > hook_s + Settings().drain_timeout_s
