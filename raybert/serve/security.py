"""Who may ask: API keys, kept as digests, compared in constant time, read again when their file changes."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from raybert.errors import SettingsError
from raybert.observability import LOGGER

KEYS_VARIABLE = "RAYBERT_API_KEYS"
SHORTEST_KEY = 16
_LOOK_EVERY_S = 1.0


class ApiKeys:
    """The keys that open the inference routes; none at all means that nobody is asked for one.

    Args:
        keys: given directly, as in `KEYS_VARIABLE`.
        file: a key a line, empty lines and those that begin with ``#`` left out. It is looked at again at most once
            a second; one that has become unreadable or wrong is reported, and the keys before stay.
        clock: seconds, for tests.

    Raises:
        SettingsError: a key is too short or holds white space; the file can't be read or has none.
    """

    def __init__(
        self, keys: Iterable[str] = (), *, file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._given = [_digest(key, KEYS_VARIABLE) for key in keys]
        self._file, self._clock = file, clock
        self._seen = _stamp(file) if file else None
        self._from_file = _read(file) if file else []
        self._looked = clock()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, file: Path | None = None) -> ApiKeys:
        """Those of `KEYS_VARIABLE`, separated by commas, and those of a file."""
        words = [word.strip() for word in environment.get(KEYS_VARIABLE, "").split(",")]
        return cls([word for word in words if word], file=file)

    def __bool__(self) -> bool:
        return bool(self._given or self._from_file)

    def allow(self, authorization: str | None) -> bool:
        """Whether the value of an ``Authorization`` header opens the door: ``Bearer KEY``, or the key alone.

        Clients of text-embeddings-inference send it either way. Every key is compared, whichever fits: the time that
        it takes says nothing about them.
        """
        self._look_again()
        if not self:
            return True
        scheme, _, rest = (authorization or "").strip().partition(" ")
        offered = _sha256(rest.strip() if scheme.lower() == "bearer" else scheme + rest)
        return sum(hmac.compare_digest(offered, known) for known in [*self._given, *self._from_file]) > 0

    def _look_again(self) -> None:
        now = self._clock()
        if self._file is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        try:
            if (stamp := _stamp(self._file)) == self._seen:
                return
            self._from_file, self._seen = _read(self._file), stamp
        except SettingsError as error:
            logging.getLogger(LOGGER).warning("%s; the keys before stay", error)
            return
        logging.getLogger(LOGGER).info("%s: %d keys read anew", self._file, len(self._from_file))


def _digest(key: str, place: str) -> bytes:
    if len(key) < SHORTEST_KEY or any(letter.isspace() for letter in key):
        raise SettingsError(
            f"{place}: a key of {len(key)} characters; give {SHORTEST_KEY} or more, without white space "
            "(such as `openssl rand -hex 24` prints)"
        )
    return _sha256(key)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _read(file: Path) -> list[bytes]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: can't be read as a file of API keys ({error})") from error
    keys = [_digest(line, f"{file}: line {at}") for at, line in enumerate(lines, 1) if line and line[0] != "#"]
    if not keys:  # an open door is never what an empty file means
        raise SettingsError(f"{file}: holds no API key; write one a line")
    return keys


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise SettingsError(f"{file}: can't be read as a file of API keys ({error})") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def check_exposure(host: str, keys: ApiKeys, *, open_to_all: bool) -> None:
    """Refuse to answer the whole network without keys, unless that was asked for.

    Raises:
        SettingsError: ``host`` is no loopback address and there are no keys.
    """
    if keys or open_to_all or _is_loopback(host):
        return
    raise SettingsError(
        f"host {host}: others could use it without an API key; set {KEYS_VARIABLE}, or api_key_file in a "
        "configuration, bind 127.0.0.1, or pass --no-api-key"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # another name may lead anywhere
        return False
