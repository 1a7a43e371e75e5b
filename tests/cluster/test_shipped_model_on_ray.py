"""`tests.service.test_shipped_model` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_shipped_model

globals().update(on_ray(test_shipped_model))
