"""`serve run app.cluster.service:application`: the whole service as one application of Ray Serve."""

from typing import Any, Final

from ray import serve
from ray.serve import Application

from app.cluster.ingress import ENGINE, INGRESS, EngineDeployment, IngressDeployment
from app.settings import PREFIX, Settings, SettingsError

# Serve's own bounds stay above the application's, which answer 429 in the service's own form.
_CALLS: Final = 4096
_LOGGING: Final = {"enable_access_log": False}  # the application has its own
_SCALING: Final = "app.cluster.scaling:by_queued_images"


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


def build(settings: Settings) -> Application:
    """Make the application from settings, which are the same for all its replicas.

    Raises:
        SettingsError: They want what a cluster does not have.
    """
    if settings.grpc_port:
        raise SettingsError(f"{PREFIX}GRPC_PORT can't be used on Ray: several replicas would want the same port.")
    engine = serve.deployment(
        EngineDeployment,
        name=ENGINE,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=_CALLS,
        logging_config=_LOGGING,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=5,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 4,
            "target_ongoing_requests": 16,  # read as pictures
            "upscale_delay_s": 5,
            "downscale_delay_s": 60,
            "policy": {"policy_function": _SCALING},
        },
    )
    ingress = serve.deployment(
        serve.ingress()(IngressDeployment),
        name=INGRESS,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=_CALLS,
        logging_config=_LOGGING,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16},
    )
    return ingress.bind(settings, engine.bind(settings))
