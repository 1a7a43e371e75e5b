"""Pictures in object stores and behind other URLs: listed and read through fsspec, which is optional."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from app.folder.errors import StoppedError, UsageError

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MAGIC: Final = re.compile(r"[*?\[]")
# What these say is true of one object; anything else that fails is the store's or the network's trouble.
_OF_ONE_OBJECT: Final = (FileNotFoundError, PermissionError, IsADirectoryError)


def is_url(text: str) -> bool:
    """Tell a URL such as ``s3://bucket/prefix/`` from a path."""
    return _SCHEME.match(text) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the URL's path in it.

    Credentials and endpoints are the store's own, as its library finds them (for S3: AWS_* variables,
    profiles, roles).

    Raises:
        UsageError: No library knows the scheme, or the one that does is not installed.
    """
    try:
        import fsspec  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UsageError(
            f"{url}: URLs are read with fsspec, which is not installed: pip install 'leukoscope[ray]', "
            "or fsspec and the store's library, such as s3fs"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        known = "s3://, gs://, az://, https://"
        raise UsageError(f"{url}: {error}; expected a path, or a URL such as {known} that fsspec knows") from error
    except ImportError as error:
        raise UsageError(f"{url}: the store's library is not installed: {error}") from error
    return system, str(path)


def listed(url: str) -> Iterator[tuple[str, int]]:
    """List the files below a URL, the one that it names, or those that match its pattern, in the order of names.

    Yields:
        URL and size in bytes.

    Raises:
        UsageError: Nothing is there, or the store does not let itself be listed.
    """
    system, path = file_system(url)
    pattern = _MAGIC.search(path) is not None
    try:
        # What was listed earlier in this process may be out of date.
        system.invalidate_cache()
        found = system.glob(path, detail=True) if pattern else system.find(path, detail=True)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # each store's library has exceptions of its own
        raise UsageError(f"{url}: can't be listed: {said(error)}") from error
    if not found:
        raise UsageError(f"{url}: {'the pattern matches nothing' if pattern else 'no such bucket, prefix or file'}")
    for name in sorted(found):
        if found[name].get("type", "file") == "file":
            yield system.unstrip_protocol(name), int(found[name].get("size") or 0)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file behind a URL."""

    url: str

    def read_bytes(self) -> bytes:
        """Return its bytes.

        Raises:
            OSError: It is not there any more, or may not be read.
            StoppedError: The store can't be reached, or fails.
        """
        system, path = file_system(self.url)
        try:
            data: bytes = system.cat_file(path)
        except _OF_ONE_OBJECT:
            raise
        except Exception as error:
            raise StoppedError(f"{self.url}: the store fails: {said(error)}") from error
        return data


def said(error: BaseException) -> str:
    """Return what an error says, or its name if it says nothing."""
    return str(error) or type(error).__name__
