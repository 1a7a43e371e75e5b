"""The two classes, and their order in targets and logits."""

from typing import Final

LABELS: Final = ("ALL", "HEM")
ALL: Final = LABELS.index("ALL")
