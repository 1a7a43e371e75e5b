"""Tests of the service and of the training."""

import app  # noqa: F401  switches ONNX Runtime's telemetry off before any test imports it
