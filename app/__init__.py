"""Leukoscope's inference service: pictures of white blood cells in, ALL or HEM out."""

import os

# From 1.29 on, ONNX Runtime's Linux builds send usage data to their maker unless this is set before
# they are imported. A laboratory's machine tells nobody what it runs.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
