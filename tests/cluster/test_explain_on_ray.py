"""`tests.service.test_explain` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_explain

globals().update(on_ray(test_explain))
