"""Training of the classifiers that the service runs; of `app` it uses `app.core` alone."""

import app.core  # noqa: F401  importing it first switches ONNX Runtime's telemetry off
