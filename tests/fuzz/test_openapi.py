"""Schemathesis: requests made from the OpenAPI document, right and wrong ones, against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from schemathesis.core.result import Ok

from app.security.keys import new_key
from tests.models import write_models
from tests.service.harness import ServerProcess, samples

ADMIN, ADMIN_KEY = new_key("fuzzer")
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("fuzzed")
    models = write_models(folder / "models")
    with ServerProcess(folder / "log", models_dir=models, admin_keys=ADMIN_KEY.setting) as process:
        yield process
        # Whatever came, it lives, is well, and nothing broke on the way.
        with process.client() as client:
            assert client.get("/readyz").status_code == 200
            counted = samples(client.get("/metrics").text)
        asked = sum(
            n for name, n in counted.items() if name.startswith("leukoscope_http_request_duration_seconds_count")
        )
        assert asked > 100
        assert "Traceback" not in process.log()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_as_documented(server: ServerProcess, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    assert {operation.path for operation in operations} >= {"/predict", "/models/active", "/readyz", "/metrics"}
    for operation in operations:
        if mode is GenerationMode.POSITIVE or can_be_wrong(operation):
            fuzz(operation, mode)


def can_be_wrong(operation: schemathesis.APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether the operation takes anything that could be wrong."""
    return bool(operation.body or any(True for _ in operation.iter_parameters()))


def fuzz(operation: schemathesis.APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers={"X-API-Key": ADMIN}, timeout=30)
        # 503 and 504 are right answers to some requests: a deadline of a nanosecond, say.
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=CHECKS)

    check()
