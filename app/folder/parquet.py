"""The Parquet output. A Parquet file can't be added to, so rows gather in a journal that becomes one at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.folder.errors import StoppedError, UsageError
from app.folder.rows import COLUMNS

if TYPE_CHECKING:
    import polars as pl

PARQUET_SUFFIX: Final = ".parquet"
_JOURNAL_SUFFIX: Final = ".part.jsonl"


class ParquetTable:
    """A Parquet file and, beside it, the journal of a run that is not finished.

    While the journal is there it holds all rows; the table of an earlier, finished run stays as it
    is until the new one replaces it in one step.

    Attributes:
        journal: A JSON Lines file, ``<name>.parquet.part.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        """Make the table.

        Raises:
            UsageError: polars is not installed.
        """
        try:
            import polars as pl  # noqa: F401, PLC0415 - an optional extra; found missing before any work is done
        except ImportError as error:
            raise UsageError(
                f"{path}: Parquet needs polars, which is not installed: pip install 'leukoscope[parquet]', "
                "or name a .csv or .jsonl file"
            ) from error
        self._path = path
        self.journal = path.with_name(path.name + _JOURNAL_SUFFIX)

    def prepare(self, *, fresh: bool) -> None:
        """Write a finished table's rows into a journal, so that more can be added.

        Raises:
            UsageError: The file is no table of this command.
        """
        import polars as pl  # noqa: PLC0415 - as above

        if fresh or self.journal.exists() or not self._path.exists():
            return
        try:
            if pl.read_parquet_schema(self._path) != _schema():
                raise UsageError(f"{self._path}: is there already, but is no output of this command")
            whole = self.journal.with_suffix(".tmp")
            pl.scan_parquet(self._path).sink_ndjson(whole)
            whole.replace(self.journal)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UsageError(f"{self._path}: can't be read as Parquet: {error}") from error

    def finish(self) -> None:
        """Make the table of the journal, in one step, and remove the journal.

        Raises:
            StoppedError: The disk takes no more; the journal is kept.
        """
        import polars as pl  # noqa: PLC0415 - as above

        whole = self._path.with_name(self._path.name + ".tmp")
        try:
            if self.journal.stat().st_size:
                pl.scan_ndjson(self.journal, schema=_schema()).sink_parquet(whole)
            else:
                pl.DataFrame(schema=_schema()).write_parquet(whole)
            whole.replace(self._path)
            self.journal.unlink()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise StoppedError(f"{self._path}: can't be written: {error}; all rows are in {self.journal}") from error


def _schema() -> "pl.Schema":
    import polars as pl  # noqa: PLC0415 - as above

    kinds: dict[str, pl.DataType] = dict.fromkeys(("confidence", "p_all", "p_hem"), pl.Float64())
    kinds["review"] = pl.Boolean()
    return pl.Schema({column: kinds.get(column, pl.String()) for column in COLUMNS})
