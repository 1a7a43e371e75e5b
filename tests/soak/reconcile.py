"""Hold the server's counters against what the clients saw."""

import re
from collections import Counter, defaultdict

from tests.soak.traffic import Seen

PICTURE_REASONS = ("undecodable-image", "image-too-large")
_EXPECTED_STATUSES = {200, 400, 413, 415, 422, 429, 504}
_GROWTH = 1.10
_GROWTH_MIB = 64  # a model that is not let go takes more


def complaints(seen: Seen, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Say what does not add up; empty if all does.

    Args:
        seen: By the clients, from the first to the last request.
        before: The server's samples before the first.
        after: And after the last.
    """
    found = [f"lost: {text}" for text in seen.lost]
    found += [f"status {status} was not expected" for status in set(seen.statuses) - _EXPECTED_STATUSES]
    change = defaultdict(float, {name: value - before.get(name, 0) for name, value in after.items()})
    admitted = change["leukoscope_admitted_total"]
    predictions = _total(change, "leukoscope_predictions_total")
    refused = sum(change[f'leukoscope_rejected_total{{reason="{reason}"}}'] for reason in PICTURE_REASONS)
    failed = _total(change, "leukoscope_failed_total")
    ended = predictions + refused + failed + change["leukoscope_cancelled_total"]
    if admitted != ended:
        found.append(f"{admitted:g} pictures were admitted and {ended:g} ended")
    for name in ("leukoscope_queue_depth", "leukoscope_queue_bytes"):
        if after[name] != 0:
            found.append(f"{name} is {after[name]:g} when nothing is under way")
    if not seen.answered <= predictions <= seen.answered + seen.at_risk:
        found.append(
            f"clients saw {seen.answered} answered pictures (and {seen.at_risk} without an answer), "
            f"the server counted {predictions:g}"
        )
    handled = by_status(change)
    for status, count in seen.statuses.items():
        # An answer to a client that had just hung up is counted by the server only.
        if not count <= handled[status] <= count + seen.abandoned:
            found.append(f"clients saw {count} answers {status}, the server counted {handled[status]:g}")
    total, sent = sum(handled.values()), sum(seen.statuses.values())
    if not sent <= total <= sent + seen.abandoned:
        found.append(f"{sent} requests were answered and {seen.abandoned} abandoned, the server counted {total:g}")
    return found


def by_status(samples: dict[str, float]) -> Counter[int]:
    """Count the requests to `/predict` by status."""
    counted: Counter[int] = Counter()
    for name, value in samples.items():
        match = re.fullmatch(
            r'leukoscope_http_request_duration_seconds_count\{method="POST",route="/predict",status="(\d+)"\}', name
        )
        if match:
            counted[int(match[1])] += int(value)
    return counted


def memory_grows(rss_mib: list[float]) -> str | None:
    """Compare the second quarter of the run with the last; None if memory stays where it is.

    Their minima are compared: while a model is replaced there are two of them.
    """
    if len(rss_mib) < 20:
        return None
    quarter = len(rss_mib) // 4
    early, late = min(rss_mib[quarter : 2 * quarter]), min(rss_mib[-quarter:])
    if late > early * _GROWTH and late > early + _GROWTH_MIB:
        return f"memory grew from {early:.0f} to {late:.0f} MiB"
    return None


def _total(samples: dict[str, float], name: str) -> float:
    return sum(value for sample, value in samples.items() if sample.startswith(name))
