"""`tests.service.test_audit` against the service on Ray."""

from tests.cluster.contract import on_ray
from tests.service import test_audit

globals().update(on_ray(test_audit))
