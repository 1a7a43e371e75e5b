"""One cluster for all tests of this folder; without it they skip, and say why."""

import importlib.util
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.local import LocalCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LocalCluster]":
    """Two nodes on this machine."""
    if "TEST_CLUSTER" not in os.environ:
        pytest.skip("runs by `make test-cluster`")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("the extra 'ray' is not installed: make setup-ray")
    from tests.cluster.local import LocalCluster  # noqa: PLC0415 - needs the extra

    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test time, and don't ask of Ray that it warns of nothing."""
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("ignore"))
