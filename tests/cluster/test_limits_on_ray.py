"""`tests.service.test_limits` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_limits

globals().update(on_ray(test_limits))
