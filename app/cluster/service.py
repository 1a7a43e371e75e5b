"""`serve run app.cluster.service:application`: the whole service as one application of Ray Serve."""

from collections.abc import Mapping
from typing import Any, Final

from ray import serve
from ray.serve import Application

from app.cluster.ingress import ENGINE, INGRESS, EngineDeployment, IngressDeployment
from app.settings import PREFIX, Settings, SettingsError

# Serve's own bounds stay above the application's, which answer 429 in the service's own form.
_CALLS: Final = 4096
_ENGINE: Final = {
    "autoscaling_config": {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 16,  # read as pictures, by this policy
        "upscale_delay_s": 5,
        "downscale_delay_s": 60,
        "policy": {"policy_function": "app.cluster.scaling:by_queued_images"},
    }
}
_INGRESS: Final = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16}}


def application(arguments: dict[str, Any]) -> Application:
    """Make the application. What it says of replicas are defaults; a file for `serve deploy` changes them.

    Args:
        arguments: Settings without their prefix, in small letters, as in ``models_dir=/models``. Those that are not
            here are the environment's, where this function runs.

    Raises:
        SettingsError: One is wrong, or names no setting.
    """
    try:
        settings = Settings(**arguments)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return build(settings)


def build(
    settings: Settings, *, engine: Mapping[str, Any] | None = None, ingress: Mapping[str, Any] | None = None
) -> Application:
    """Make the application from settings, which are the same for all its replicas.

    Args:
        settings: Without a gRPC port; with API keys, or leave to serve everybody.
        engine: Options of Serve's for the deployment with the engines, over those that are set here.
        ingress: The same for the deployment of those who take requests and decode.

    Raises:
        SettingsError: The settings want what a cluster does not have.
    """
    _check(settings)
    engines = serve.deployment(EngineDeployment, **(_common(ENGINE, settings) | _ENGINE | dict(engine or {})))
    entrance = serve.deployment(
        serve.ingress()(IngressDeployment), **(_common(INGRESS, settings) | _INGRESS | dict(ingress or {}))
    )
    return entrance.bind(settings, engines.bind(settings))


def _common(name: str, settings: Settings) -> dict[str, Any]:
    return {
        "name": name,
        "ray_actor_options": {"num_cpus": 1},
        "max_ongoing_requests": _CALLS,
        "logging_config": {"enable_access_log": False},  # the application has its own
        "graceful_shutdown_timeout_s": settings.drain_timeout_s,
        "health_check_period_s": 5,
    }


def _check(settings: Settings) -> None:
    if not (settings.api_keys or settings.api_keys_file or settings.allow_anonymous):
        raise SettingsError(
            f"On Ray the address to listen on is Serve's own, so that nobody here can see who reaches it: "
            f"set {PREFIX}API_KEYS, or {PREFIX}ALLOW_ANONYMOUS=true."
        )
    if settings.grpc_port:
        raise SettingsError(f"{PREFIX}GRPC_PORT can't be used on Ray: several replicas would want the same port.")
