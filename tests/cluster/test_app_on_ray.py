"""`tests.service.test_app` against the service on Ray."""

from tests.cluster.contract import ENGINES_METRICS, on_ray
from tests.service import test_app

_ENGINES = ("test_metrics", "test_several_threads_of_a_cpu_give_the_same_answers")

globals().update(on_ray(test_app, dict.fromkeys(_ENGINES, ENGINES_METRICS)))
