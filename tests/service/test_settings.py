"""Settings: bounds, unknown names, and what an operator is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.cpus import cgroup_cpus, usable_cpus
from app.settings import Settings, describe, explain


def fault(error: ValidationError) -> str:
    return "\n".join(explain(error))


def test_defaults() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.device, settings.queue_limit) == ("127.0.0.1", 8000, "auto", 1024)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_PORT", "9001")
    monkeypatch.setenv("LEUKOSCOPE_HOST", "")  # as an unset variable of a compose file
    settings = Settings()
    assert (settings.port, settings.host) == (9001, "127.0.0.1")


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "70000"),
        ("PORT", "http"),
        ("DEVICE", "tpu"),
        ("GPUS", "-1"),
        ("MAX_BATCH", "1000"),
        ("MAX_WAIT_MS", "-1"),
        ("QUEUE_LIMIT", "0"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("MAX_REQUEST_BYTES", "1"),
        ("MAX_IMAGE_PIXELS", "1e12"),
        ("LOG_LEVEL", "chatty"),
    ],
)
def test_out_of_bounds_names_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LEUKOSCOPE_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert f"LEUKOSCOPE_{name}={value}" in fault(caught.value)


def test_unknown_variable_is_refused_with_near_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_MAXBATCH", "4")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "LEUKOSCOPE_MAXBATCH is not a setting (did you mean LEUKOSCOPE_MAX_BATCH?)" in fault(caught.value)


def test_a_request_must_fit_the_queue() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(queue_limit=10, max_images_per_request=11)
    assert "LEUKOSCOPE_QUEUE_LIMIT (10)" in fault(caught.value)


def test_a_request_must_fit_the_bytes_that_are_held() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(queue_limit_bytes=2048, max_request_bytes=4096)
    assert "LEUKOSCOPE_QUEUE_LIMIT_BYTES (2048)" in fault(caught.value)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKOSCOPE_GPUS", "0, 2")
    monkeypatch.setenv("LEUKOSCOPE_RESIDENT", "one@1.0.0,two@2.0.0,")
    settings = Settings()
    assert (settings.gpus, settings.resident) == ((0, 2), ("one@1.0.0", "two@2.0.0"))


def test_every_setting_is_described_and_every_number_bounded() -> None:
    for variable, _, allowed, meaning in describe():
        assert meaning.endswith("."), variable
        annotation = Settings.model_fields[variable.removeprefix("LEUKOSCOPE_").lower()].annotation
        assert allowed or annotation in {str, Path, Path | None}, variable


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "150000 100000"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", 4.0),
        ({"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000"}, "0::/a/b\n", 1.0),
        ({}, "0::/\n", None),
        ({"cpu.max": "nonsense"}, "0::/\n", None),
        ({"cpu.max": "100000 100000"}, "5:cpu:/old\n", None),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], own: str, expected: float | None) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cgroup_cpus(root, tmp_path / "own") == expected


def test_usable_cpus_is_positive() -> None:
    assert usable_cpus() >= 1
    assert cgroup_cpus(own=Path("does-not-exist")) is None
