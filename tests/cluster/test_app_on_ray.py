"""`tests.service.test_app` against the service on Ray."""

from tests.cluster.contract import ENGINES_METRICS, on_ray
from tests.service import test_app

globals().update(on_ray(test_app, {"test_metrics": ENGINES_METRICS}))
