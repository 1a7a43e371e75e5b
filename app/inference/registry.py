"""The folder models/: find and verify what is installed there, and remember what is served."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from app.core.active import ACTIVE_FILE, write_active
from app.core.errors import ManifestError, ModelError, ModelIntegrityError, ModelNotFoundError
from app.core.spec import MANIFEST_FILE, REPORT_FILE, Manifest


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Name and version of a model: the names of its folders."""

    name: str
    version: str

    def __post_init__(self) -> None:
        # They come from outside and become a path.
        if not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", part) for part in (self.name, self.version)):
            raise ModelNotFoundError(f"{self.name!r} and {self.version!r} are not the name and version of a model.")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name@version``.

        Raises:
            ModelNotFoundError: It is something else.
        """
        name, _, version = text.partition("@")
        return cls(name, version)


@dataclass(frozen=True, slots=True)
class Installed:
    """One folder ``models/<name>/<version>/``.

    Attributes:
        ref: The names of its folders.
        manifest: None if it can't be read.
        report: Measured figures; empty if there are none.
        problem: What is wrong with the folder; None if every file has the hash of the manifest.
    """

    ref: ModelRef
    manifest: Manifest | None
    report: dict[str, Any]
    problem: str | None


class Registry:
    """The folder models/."""

    def __init__(self, models_dir: Path) -> None:
        self._dir = models_dir
        # Hashes by path, size and time of change, so that GET /models does not read all weights each time.
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def scan(self) -> list[Installed]:
        """Inspect every folder, in the order of names. A bad folder is reported and does no harm."""
        folders = sorted(path.parent for path in self._dir.glob(f"*/*/{MANIFEST_FILE}"))
        return [self.inspect(ModelRef(folder.parent.name, folder.name)) for folder in folders]

    def active(self) -> ModelRef:
        """Read which model is to be served.

        Raises:
            ManifestError: ``active.json`` is missing or says something else than a name and a version.
        """
        path = self._dir / ACTIVE_FILE
        raw = _read_json(path)
        if raw.keys() != {"name", "version"}:
            raise ManifestError(f"{path}: expected the keys name and version, not {sorted(raw)}")
        try:
            return ModelRef(str(raw["name"]), str(raw["version"]))
        except ModelNotFoundError as error:
            raise ManifestError(f"{path}: {error}") from error

    def inspect(self, ref: ModelRef) -> Installed:
        """Read and verify one folder; what is wrong with it stands in the result."""
        folder = self._dir / ref.name / ref.version
        manifest: Manifest | None = None
        report: dict[str, Any] = {}
        try:
            manifest = Manifest.load(folder)
            if (manifest.name, manifest.version) != (ref.name, ref.version):
                raise ManifestError(f"{folder}: the manifest is of {manifest.name} {manifest.version}")
            for file, digest in manifest.files.items():
                self._verify(folder / file, digest)
            report = _read_json(folder / REPORT_FILE)
        except ModelError as error:
            return Installed(ref, manifest, report, str(error))
        return Installed(ref, manifest, report, None)

    def verified(self, ref: ModelRef) -> Installed:
        """Return a folder that can be loaded.

        Raises:
            ModelNotFoundError: There is no such folder.
            ModelIntegrityError: Something is wrong with it.
        """
        if not (self.folder(ref) / MANIFEST_FILE).is_file():
            raise ModelNotFoundError(f"{ref} is not installed under {self._dir.name}/.")
        installed = self.inspect(ref)
        if installed.problem is not None:
            raise ModelIntegrityError(installed.problem)
        return installed

    def folder(self, ref: ModelRef) -> Path:
        """Return where a model's files are."""
        return self._dir / ref.name / ref.version

    def activate(self, ref: ModelRef) -> None:
        """Name in ``active.json`` what the next start shall serve.

        Raises:
            OSError: It can't be written; what was there is unchanged.
        """
        write_active(self._dir, ref.name, ref.version)

    def _verify(self, path: Path, digest: str) -> None:
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._hashes:
                with path.open("rb") as file:
                    self._hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelIntegrityError(f"{path}: can't be read: {error}") from error
        if self._hashes[key] != digest:
            raise ModelIntegrityError(f"{path}: is not the file that the manifest names by its hash")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: can't be read: {error}") from error
    if not isinstance(raw, dict):
        raise ManifestError(f"{path}: expected an object, not {type(raw).__name__}")
    return raw
