"""Where cells lie in a folder, and what their place and name say of them.

Understood are the three parts of a C-NMC download, and plain folders ``all`` and ``hem``:

- ``.../fold_<k>/{all,hem}/UID_<subject>_<image>_<cell>_<class>.bmp``: training;
- ``.../C-NMC_test_prelim_phase_data/<n>.bmp`` with a CSV file of labels: preliminary test;
- ``.../C-NMC_test_final_phase_data/<n>.bmp``: final test, whose labels were never published;
- ``{all,hem}/[<subject>/]<name>``: cells of one's own.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.core.naming import CELL_NAME, is_picture
from app.core.tree import walk

Source = Literal["training", "preliminary", "final", "own"]
FaultKind = Literal["unreadable", "misnamed", "missing", "duplicated", "odd size", "two labels", "two classes"]

LABELS_CSV: Final = "C-NMC_test_prelim_phase_data_labels.csv"
_PRELIMINARY: Final = "C-NMC_test_prelim_phase_data"
_FINAL: Final = "C-NMC_test_final_phase_data"
_CLASSES: Final = {"all": "ALL", "hem": "HEM"}
_COLUMNS: Final = ("Patient_ID", "new_names", "labels")


@dataclass(frozen=True)
class Fault:
    """Something that is not as it should be.

    Attributes:
        kind: Of fault; ``unreadable``, ``misnamed`` and ``missing`` cells are left out, the others are kept.
        path: Of the file.
        reason: For people.
    """

    kind: FaultKind
    path: Path
    reason: str


@dataclass(frozen=True)
class Place:
    """A picture's file, and what its place and name say.

    Attributes:
        path: Of the file.
        source: Which part of a download it belongs to.
        label: ``ALL`` or ``HEM``; None where it is not published.
        subject: None where nothing says it.
        fold: Of the training part.
    """

    path: Path
    source: Source
    label: str | None = None
    subject: str | None = None
    fold: int | None = None


def find_places(data: Path) -> tuple[list[Place], list[Fault]]:
    """Find every picture under a folder.

    Args:
        data: A download's folder, or one above it, or one that holds ``all`` and ``hem``.

    Returns:
        The pictures in the order of their paths, and what is wrong with names and labels.
    """
    places: list[Place] = []
    faults: list[Fault] = []
    unreadable: list[OSError] = []
    tables: dict[Path, dict[str, str]] = {}
    folders = dict(walk(data, unreadable.append))
    for folder in sorted(folder for folder in folders if folder.name == _PRELIMINARY):
        tables[folder] = {}
        faults += _read_labels(folder, tables[folder])
    faults += [Fault("unreadable", Path(error.filename), f"can't be read: {error.strerror}") for error in unreadable]
    pictures = (folder / name for folder, names in folders.items() for name in names if is_picture(name))
    for path in sorted(pictures):
        try:
            found = _place(path, (data.resolve().name, *path.relative_to(data).parts[:-1]), tables)
        except ValueError as error:
            faults.append(Fault("misnamed", path, str(error)))
            continue
        if found:
            places.append(found)
    return places, faults


def _place(path: Path, folders: tuple[str, ...], tables: dict[Path, dict[str, str]]) -> Place | None:
    """Say what a picture is; None if it lies in no folder that is understood.

    Raises:
        ValueError: Its name or place contradicts itself.
    """
    if path.parent in tables:
        return _preliminary(path, tables[path.parent])
    if path.parent.name == _FINAL:
        return Place(path, "final")
    at = next((i for i in range(len(folders) - 1, -1, -1) if folders[i].lower() in _CLASSES), None)
    if at is None:
        return None
    label = _CLASSES[folders[at].lower()]
    name = CELL_NAME.fullmatch(path.stem)
    if name and name["label"].upper() != label:
        raise ValueError(f"the name says {name['label'].upper()}, the folder says {folders[at]}")
    above = folders[at - 1] if at else ""
    if above.startswith("fold"):
        return _of_fold(path, label, name, above)
    below = folders[at + 1 :]
    subject = name["subject"] if name else below[0] if below else None
    return Place(path, "own", label, subject and subject.upper())


def _of_fold(path: Path, label: str, name: re.Match[str] | None, folder: str) -> Place:
    fold = re.fullmatch(r"fold_(\d+)", folder)
    if fold is None:
        raise ValueError(f"the folder {folder} is not fold_<number>")
    if name is None:
        raise ValueError("the name is not UID_<subject>_<image>_<cell>_<class>")
    return Place(path, "training", label, name["subject"].upper(), int(fold[1]))


def _preliminary(path: Path, table: dict[str, str]) -> Place:
    uid = table.get(path.name.lower())
    name = CELL_NAME.fullmatch(Path(uid).stem) if uid else None
    if name is None:
        raise ValueError(f"the file of labels has no (good) row for it; expected it in {LABELS_CSV}")
    return Place(path, "preliminary", name["label"].upper(), name["subject"].upper())


def _read_labels(folder: Path, table: dict[str, str]) -> Iterator[Fault]:
    """Fill `table`: file name, in lower case, to original UID name; yield what is wrong."""
    file = next(
        (f / LABELS_CSV for f in (folder.parent, folder, folder.parent.parent) if (f / LABELS_CSV).is_file()), None
    )
    if file is None:
        yield Fault("missing", folder.parent / LABELS_CSV, "the preliminary test has no labels without it")
        return
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
        rows = csv.DictReader(opened)
        if not set(_COLUMNS) <= set(rows.fieldnames or ()):
            yield Fault("misnamed", file, f"its columns are {rows.fieldnames}; expected {', '.join(_COLUMNS)}")
            return
        for row in rows:
            reason = _wrong_row(row, table)
            if reason:
                yield Fault("misnamed", file, f"line {rows.line_num}: {reason}")
                continue
            table[row["new_names"].strip().lower()] = row["Patient_ID"].strip()
            if not (folder / row["new_names"].strip()).is_file():
                yield Fault("missing", folder / row["new_names"].strip(), f"named in {file.name}, but not there")


def _wrong_row(row: dict[str, str | None], table: dict[str, str]) -> str | None:
    uid, file, label = ((row[column] or "").strip() for column in _COLUMNS)
    name = CELL_NAME.fullmatch(Path(uid).stem)
    if name is None:
        return f"Patient_ID {uid!r} is not UID_<subject>_<image>_<cell>_<class>"
    # Here 1 is ALL, where folders in their order would have it the other way round.
    if label != {"all": "1", "hem": "0"}[name["label"].lower()]:
        return f"the label {label!r} contradicts {uid}; 1 is ALL, 0 is HEM"
    if file.lower() in table:
        return f"{file} has two rows"
    return None
