"""`tests.service.test_v2` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_v2

globals().update(on_ray(test_v2))
