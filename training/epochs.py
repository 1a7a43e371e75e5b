"""What a report says of how long its run was fitted, in words."""

from typing import Any


def epochs(report: dict[str, Any]) -> str:
    """Return how many epochs a run was fitted for, and of how many if it was ended by hand; of a probe nothing."""
    planned = report.get("planned_epochs")
    return f"{report['epochs']} of {planned}" if planned else str(report["epochs"] or "")


def ended(report: dict[str, Any]) -> str:
    """Return that a run was ended by hand, as a sentence; nothing of one that came to its own end."""
    return f"The run was ended by hand after {epochs(report)} epochs." if report.get("planned_epochs") else ""
