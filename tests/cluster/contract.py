"""The tests of the HTTP contract, taken as they are from `tests.service`, run against the service on Ray."""

import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cluster.local import LocalCluster

# These reach around the service, each in its own way; tests that take the application skip by themselves.
_OTHER_WAYS = {
    "server": "needs `leukoscope serve`, whose HTTP server bounds bytes and times; here Serve's proxy is before it",
    "caplog": "reads the log of this process",
    "monkeypatch": "changes the code of this process",
}

ENGINES_METRICS = "wants the engines' metrics on /metrics; here that is one ingress replica's, and Ray exports all"


def on_ray(module: ModuleType, skip: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a module's tests of the running service, and its fixtures, for the names of another module.

    Args:
        module: Of `tests.service`; its `running` is replaced while they run.
        skip: Tests that make no sense here, and why.
    """
    names: dict[str, Any] = {}
    for name, thing in vars(module).items():
        if type(thing).__name__ == "FixtureFunctionDefinition":
            names[name] = thing
        elif name.startswith("test_") and inspect.iscoroutinefunction(thing):
            names[name] = _marked(thing, name, skip or {})

    @pytest.fixture(autouse=True)
    def _on_the_cluster(cluster: "LocalCluster") -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "running", cluster.running)
            yield

    return names | {"_on_the_cluster": _on_the_cluster, "pytestmark": pytest.mark.anyio}


def _marked(test: Any, name: str, skip: Mapping[str, str]) -> Any:
    reasons = [reason for fixture, reason in _OTHER_WAYS.items() if fixture in inspect.signature(test).parameters]
    if name in skip:
        reasons.append(skip[name])
    if not reasons:
        return test

    async def skipped(**_: object) -> None:
        pytest.skip(reasons[0])

    skipped.__name__ = name
    return pytest.mark.skip(reason=reasons[0])(skipped)
