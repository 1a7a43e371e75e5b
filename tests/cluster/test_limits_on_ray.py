"""`tests.service.test_limits` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_limits

_SKIP = {
    "test_an_announced_length_is_only_a_word": "sends a false length, which no client can over a real connection",
    "test_a_body_that_is_read_before_the_key_is_asked_for_is_small": (
        "counts what the service reads of a body; here Serve's proxy has read it before"
    ),
}

globals().update(on_ray(test_limits, _SKIP))
