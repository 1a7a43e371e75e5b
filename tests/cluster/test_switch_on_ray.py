"""`tests.service.test_switch` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_switch

globals().update(on_ray(test_switch))
