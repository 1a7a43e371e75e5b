"""The PromQL of deploy/: every expression of the alerts and of the dashboard, and what it names."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
_METRIC = re.compile(r"\b((?:leukoscope|process)_[a-z_]+|up)\b(?:\{([^}]*)\})?")
_GROUPED = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"")
# Prometheus adds these to what it scrapes.
TARGET_LABELS = {"job", "instance"}


def alert_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel, expression), with Grafana's variables filled in as it does."""
    document = json.loads((DEPLOY / "grafana" / "dashboards" / "leukoscope.json").read_text(encoding="utf-8"))
    filled = {"$instance": ".*", "$__rate_interval": "1m"}
    found = []
    for panel in document["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in filled.items():
                expression = expression.replace(variable, value)
            found.append((f"{panel['title']} {target['refId']}", expression))
    return found


def all_expressions() -> list[str]:
    return [rule["expr"] for rule in alert_rules()] + [expression for _, expression in dashboard_queries()]


def named(expression: str) -> tuple[dict[str, set[str]], set[str]]:
    """Metric → labels of its selectors; and the labels that are grouped by, but for the target's."""
    metrics: dict[str, set[str]] = {}
    for metric, selector in _METRIC.findall(re.sub(r"\b(?:by|on)\s*\([^)]*\)", "", expression)):
        metrics.setdefault(metric, set()).update(set(_LABEL.findall(selector)) - TARGET_LABELS)
    grouped = {label.strip() for part in _GROUPED.findall(expression) for label in part.split(",")}
    return metrics, grouped - TARGET_LABELS
