"""`tests.service.test_novelty` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_novelty

globals().update(on_ray(test_novelty))
