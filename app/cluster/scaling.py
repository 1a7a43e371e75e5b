"""How many engines the cluster shall have: as many as the waiting pictures want. Serve does all the rest."""

from typing import Any, Final

QUEUED_IMAGES: Final = "queued_images"


def by_queued_images(context: Any) -> tuple[float, dict[str, Any]]:  # noqa: ANN401 - Serve's AutoscalingContext
    """Return the number of engines that are wanted now, and no state.

    `target_ongoing_requests` of the autoscaling settings is read as pictures, waiting or running, for one engine.
    """
    images = sum(context.aggregated_metrics.get(QUEUED_IMAGES, {}).values())
    return images / context.config.target_ongoing_requests, {}
