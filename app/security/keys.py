"""API keys: named, kept as hashes, compared in constant time; and who must have one.

A key is 32 random bytes, so its plain SHA-256 gives nothing away: the slow, salted hashes that passwords
need guard against guessing, and 2**256 possibilities can't be guessed. A fast hash also keeps the check of
each request cheap, so that wrong keys are no way to keep the service busy.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from app.core.errors import UnauthenticatedError
from app.settings import PREFIX, Settings, SettingsError

KEY_HEADER: Final = "X-API-Key"
KEY_PREFIX: Final = "lk_"  # lets scanners of code and logs find a key that leaked

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANDOM_BYTES: Final = 32
_HOW: Final = f"Send it as '{KEY_HEADER}: KEY' or 'Authorization: Bearer KEY'."
_EXPECTED: Final = "expected NAME:HASH, as `leukoscope keys new NAME` prints it"


class KeySettingsError(SettingsError):
    """The keys in the settings can't be used, or are missing where they must not be."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key as the settings hold it.

    Attributes:
        name: Whose it is; goes into logs.
        sha256: Of the key, in bytes.
    """

    name: str
    sha256: bytes

    @property
    def setting(self) -> str:
        """The form in which settings name it."""
        return f"{self.name}:{self.sha256.hex()}"


@dataclass(frozen=True, slots=True)
class AccessKeys:
    """All keys that the service knows; the keys themselves are not among them, only their hashes.

    Attributes:
        clients: May ask for predictions. If there are none, anybody may.
        admins: May change what is served, and all that clients may. If there are none, nobody may.
        metrics_need_key: Whether `/metrics` is for the holders of keys too.
    """

    clients: tuple[Key, ...] = ()
    admins: tuple[Key, ...] = ()
    metrics_need_key: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Read the keys that the settings name, and check that the service may be started with them.

        Raises:
            KeySettingsError: A key or a file can't be read, or the address is public and there is no key.
        """
        keys = cls(
            clients=_read("API_KEYS", settings.api_keys, settings.api_keys_file),
            admins=_read("ADMIN_KEYS", settings.admin_keys, settings.admin_keys_file),
            metrics_need_key=settings.metrics_need_key,
        )
        keys._check(settings)
        return keys

    def client(self, presented: str) -> Key | None:
        """Return the key that was presented, if a client's or an admin's."""
        return find((*self.clients, *self.admins), presented)

    def known(self, presented: str | None) -> Key:
        """Return the key that was presented, if a client's or an admin's.

        Raises:
            UnauthenticatedError: None was, or it is not known.
        """
        if not presented:
            raise UnauthenticatedError(f"This needs an API key. {_HOW}")
        key = self.client(presented)
        if key is None:
            raise UnauthenticatedError(f"The API key is not known. {_HOW}")
        return key

    def admin(self, presented: str) -> Key | None:
        """Return the key that was presented, if an admin's."""
        return find(self.admins, presented)

    def _check(self, settings: Settings) -> None:
        names, hashes = ({key.name for key in self.clients}, {key.sha256 for key in self.clients})
        if any(key.name in names or key.sha256 in hashes for key in self.admins):
            raise KeySettingsError(f"{PREFIX}ADMIN_KEYS: a name or hash is a client's too; an admin's must be another")
        if self.metrics_need_key and not self.clients:
            raise KeySettingsError(f"{PREFIX}METRICS_NEED_KEY is true, but {PREFIX}API_KEYS names no key")
        if not self.clients and not settings.allow_anonymous and not is_loopback(settings.host):
            raise KeySettingsError(
                f"{PREFIX}HOST={settings.host} is open to other machines, and no API key is set. "
                f"Make one with `leukoscope keys new NAME` and set {PREFIX}API_KEYS, "
                f"or set {PREFIX}ALLOW_ANONYMOUS=true if something else keeps strangers out."
            )


def new_key(name: str) -> tuple[str, Key]:
    """Make a key.

    Args:
        name: Whose it will be: letters, digits, dot, hyphen and underscore, at most 64.

    Returns:
        The secret to hand over, and what the settings hold of it.

    Raises:
        KeySettingsError: The name can't be used.
    """
    if not _NAME.fullmatch(name):
        raise KeySettingsError(f"the name {name!r} can't be used: letters, digits, '.', '-' and '_', at most 64")
    secret = KEY_PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return secret, Key(name, _hash(secret))


def find(keys: Sequence[Key], presented: str) -> Key | None:
    """Return the key that was presented; the time that it takes tells nothing of which, or of how near."""
    digest = _hash(presented)
    found = None
    for key in keys:  # to the end, also once found
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def parse(text: str, source: str) -> tuple[Key, ...]:
    """Read keys, separated by commas or lines; what stands behind a `#` is a comment.

    Args:
        text: ``NAME:HASH`` of each key.
        source: What is read, for the error.

    Raises:
        KeySettingsError: An entry is something else, or a name or a hash comes twice. Entries
            themselves are not repeated in the text: one may be a key by mistake.
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    keys = tuple(_entry(entry, f"{source}, entry {number}") for number, entry in enumerate(entries, 1))
    for what, values in (("name", [key.name for key in keys]), ("hash", [key.sha256.hex() for key in keys])):
        if len(set(values)) < len(values):
            raise KeySettingsError(f"{source}: a {what} comes twice")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name counts as all that it stands for."""
    try:
        addresses: Iterable[str] = [host] if _is_address(host) else _addresses(host)
    except OSError:
        return True  # nothing can listen there; that error is told when it is tried
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _addresses(host: str) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def _read(name: str, inline: str, file: Path | None) -> tuple[Key, ...]:
    variable = PREFIX + name
    if file is None:
        return parse(inline, variable)
    if inline:
        raise KeySettingsError(f"{variable} and {variable}_FILE are both set; expected one of them")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise KeySettingsError(f"{variable}_FILE={file}: can't be read: {error}") from error
    keys = parse(text, f"{variable}_FILE={file}")
    if not keys:
        raise KeySettingsError(f"{variable}_FILE={file}: there is no key in it; {_EXPECTED}")
    return keys


def _entry(entry: str, source: str) -> Key:
    name, _, digest = entry.partition(":")
    if not _NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
        raise KeySettingsError(f"{source}: {_EXPECTED}")
    return Key(name, bytes.fromhex(digest))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
