"""`tests.service.test_keys` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_keys

globals().update(on_ray(test_keys))
