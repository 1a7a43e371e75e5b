"""`tests.service.test_switch` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_switch

_SKIP = {
    "test_a_resident_model_that_is_not_there": (
        "asks a service that failed to start; Serve does not deploy one (see test_nodes.py)"
    )
}

globals().update(on_ray(test_switch, _SKIP))
