"""What the two public notebooks state of themselves, beside the same systems as they were run here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from training.epochs import epochs

_NOT_RUN: Final = "not run"
_NO_WEIGHTS: Final = "no weights"


@dataclass(frozen=True)
class System:
    """A notebook's system.

    Attributes:
        name: For people.
        config: Name of the configuration that is the same system here.
        accuracy: As published, by a random split by image of all three folds; None where only its design was.
        part: Whose accuracy it is.
        absent: What stands in place of a run that was not made.
    """

    name: str
    config: str
    accuracy: float | None
    part: str = "validation"
    absent: str = _NOT_RUN


SYSTEMS: Final = (
    System("EfficientNetB3 notebook", "notebook-efficientnet-b3", 0.955, part="test"),
    System("attention notebook, proposed, as it was: one token", "notebook-attention", 0.9406),
    System("attention notebook, proposed, as promised: over the map", "notebook-attention-promised", None),
    System("attention notebook, ResNet-50, frozen", "notebook-baseline-resnet50", 0.8749, absent=_NO_WEIGHTS),
    System("attention notebook, EfficientNet-B0, frozen", "notebook-baseline", 0.8649),
    System("attention notebook, DenseNet-121, frozen", "notebook-baseline-densenet121", 0.8518),
    System("attention notebook, VGG-19, frozen", "notebook-baseline-vgg19", 0.8443, absent=_NO_WEIGHTS),
    System("attention notebook, InceptionV3, frozen", "notebook-baseline-inception-v3", 0.8186, absent=_NO_WEIGHTS),
)

_HEAD: Final = ("system", "published", "by image, validation", "by image, test", "fold 0 to 1", "fold 1 to 0")
# Of a split's name, in the order of the table's last columns.
_DIRECTIONS: Final = ("fold-1-as-test", "fold-0-as-test")


def beside_published(reports: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Set each notebook's system beside its runs; only accuracy, for nothing else was published of all.

    Args:
        reports: As `training.evaluate` wrote them, of whatever runs.

    Returns:
        The names of the columns, and a line for each system: accuracy as published, by image, and on
        subjects that were not seen. Several runs of one kind stand one after the other.
    """
    return _HEAD, [_line(system, reports) for system in SYSTEMS]


def _line(system: System, reports: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    mine = [report for report in reports if report["model"] == system.config]
    by_image = [report for report in mine if report["split"]["leaks"]]
    published = "" if system.accuracy is None else f"{system.accuracy:.4f} ({system.part})"
    return (
        system.name,
        published,
        *(_accuracy(by_image, part, system.absent) for part in ("validation", "test")),
        *(
            _accuracy([report for report in mine if direction in report["split"]["name"]], "test", system.absent)
            for direction in _DIRECTIONS
        ),
    )


def _accuracy(reports: Sequence[dict[str, Any]], part: str, absent: str) -> str:
    return ", ".join(f"{report[part]['accuracy']:.4f}{_unfinished(report)}" for report in reports) or absent


def _unfinished(report: dict[str, Any]) -> str:
    return f" (ended after {epochs(report)} epochs)" if report.get("planned_epochs") else ""
