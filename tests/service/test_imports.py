"""Who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from tests.service.harness import ROOT

FORBIDDEN_IN_APP = {"training", "torch", "timm", "lightning", "torchvision"}


def imported(file: Path) -> set[str]:
    """All modules that a file names in imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offenders(
    folder: str, forbidden: AbstractSet[str], allowed: AbstractSet[str] = frozenset()
) -> list[tuple[str, str]]:
    """Imports under a folder that are, or lie below, a forbidden module."""

    def below(name: str, modules: AbstractSet[str]) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in modules)

    return [
        (str(file.relative_to(ROOT)), name)
        for file in sorted((ROOT / folder).rglob("*.py"))
        for name in sorted(imported(file))
        if below(name, forbidden) and not below(name, allowed)
    ]


def test_app_never_imports_training() -> None:
    assert offenders("app", FORBIDDEN_IN_APP) == []


def test_training_imports_of_app_only_core() -> None:
    assert [found for found in offenders("training", {"app"}, {"app.core"}) if found[1] != "app"] == []


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("app/core", {"app", "fastapi", "starlette", "onnxruntime", "pydantic"}),
        ("app/inference", {"app.routes", "app.main", "app.cli", "app.problems", "app.schemas", "fastapi", "starlette"}),
        ("app/routes", {"app.main", "app.cli", "app.middleware"}),
        ("app/v2", {"app.routes", "app.main", "app.cli", "app.middleware", "fastapi", "starlette"}),
    ],
)
def test_directions(folder: str, forbidden: set[str]) -> None:
    allowed = {"app.core"} if folder == "app/core" else set()
    assert [found for found in offenders(folder, forbidden, allowed) if found[1] != "app"] == []


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("app.main, app.cli", {"torch", "timm", "lightning", "training", "grpc", "tritonclient", "ray", "app.cluster"}),
        ("app.cluster.engine, app.cluster.remote, app.cluster.proxy, app.cluster.scaling", {"ray"}),
        ("app.v2.tensors, app.v2.http_body", {"fastapi", "starlette", "onnxruntime", "grpc", "tritonclient"}),
        (
            "app.core.errors, app.core.imaging, app.core.postprocess, app.core.spec",
            {"fastapi", "starlette", "onnxruntime", "pydantic", "torch", "training"},
        ),
    ],
)
def test_a_fresh_interpreter_loads_nothing_more(modules: str, absent: set[str]) -> None:
    script = f"import sys, {modules}; print(*sorted(sys.modules))"
    result = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert absent & set(result.stdout.split()) == set()
