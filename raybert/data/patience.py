"""Object stores with patience: what fails for a moment is tried again, and a file that breaks off is read on.

pyarrow's S3 filesystem repeats a single request for 6 seconds, five times a second (pyarrow 26). A store that is
overloaded or restarts needs longer, and asking it less often: here an operation is tried a few times more, with waits
that double, and with jitter, so that workers which failed together don't come back together. A process has a quota of
such retries, which its successes refill slowly: a store that is ill for hours ends the run, with the last cause.
"""

from __future__ import annotations

import errno
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

_T = TypeVar("_T")
_TRANSIENT = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|THROTTL|REQUEST_TIMEOUT|NO_SUCH_UPLOAD"
    r"|HTTP status (?:408|429|5\d\d)|curlCode|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED"
)
_REFUSED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT"
    r"|PERMISSION_DENIED|HTTP status (?:401|403)"
)
_OPERATION = re.compile(r" during (\w+) operation")
_UNNAMED = re.compile(r"ExceptionName: (\w+)")  # pyarrow's SDK has no word of its own for some of S3's codes
_NO_CONNECTION = re.compile(r"curlCode: [67],")  # no such host; nobody listens there
_BROKEN = {errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT}


class StoreRefused(PermissionError):
    """The store does not accept the credentials, or they may not do this; ``strerror`` says what and the remedy."""


class StoreFailed(OSError):
    """The store failed again and again; ``strerror`` names the last cause."""


class CutShort(OSError):
    """Fewer bytes arrived than were sent or asked for."""


@dataclass
class Patience:
    """How often, and for how long; thread-safe.

    Attributes:
        attempts: of one operation.
        first_s: the first wait; each further one is twice as long. The longest stays below two heartbeats of a
            driver, so that nobody takes a driver for dead that only waits.
        quota: retries of all operations of a process.
        regained: what one success gives back of it.
    """

    attempts: int = 5
    first_s: float = 1.0
    quota: float = 100.0
    regained: float = 0.02
    _left: float = field(init=False)
    _answered: bool = field(init=False, default=False)
    _gave_up: bool = field(init=False, default=False)
    _lock: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._left = self.quota
        self._lock = threading.Lock()

    def __call__(self, work: Callable[[], _T]) -> _T:
        """The result of ``work``, which may be done more than once.

        Raises:
            StoreRefused: the store refused; that is never tried again.
            StoreFailed: it failed every time, or the quota is used up.
            OSError: anything else, as it was raised.
        """
        begun = time.monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                result = work()
            except FileNotFoundError:
                self._succeeded()
                raise
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, (StoreRefused, StoreFailed)) or not _is_transient(error):
                    raise _as_python_says(error) or error from error.__cause__
                if attempt == self.attempts or not self._may_retry(error):
                    self._gave_up = True
                    seconds = round(time.monotonic() - begun)
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise StoreFailed(errno.EIO, f"{cause(error)} (tried {times} in {seconds} s)") from error
            else:
                self._succeeded()
                return result
            time.sleep(self.first_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))  # noqa: S311  no secret
        raise AssertionError("the last attempt returns or raises")

    def _may_retry(self, error: Exception) -> bool:
        """Take one from the quota.

        An address where nobody ever answered is more likely wrong than down. After a failure that ends a run, what is
        left to do (its history, its lock) is tried once: the store was waited for already.
        """
        with self._lock:
            hopeless = self._gave_up or (not self._answered and _NO_CONNECTION.search(str(error)))
            if self._left < 1 or hopeless:
                return False
            self._left -= 1
            return True

    def _succeeded(self) -> None:
        with self._lock:
            self._answered, self._gave_up = True, False
            self._left = min(self.quota, self._left + self.regained)


PATIENCE = Patience()
"""This process's."""


def cause(error: BaseException) -> str:
    """What a store said, in one line: without what pyarrow puts before it and without the request's id."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split()) or type(error).__name__
    text = text[max(0, text.find("AWS Error")) :]
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", text).strip(" :.")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, (CutShort, ConnectionError, TimeoutError)) or getattr(error, "errno", None) in _BROKEN:
        return True
    return _TRANSIENT.search(str(error)) is not None


def _as_python_says(error: Exception) -> OSError | None:
    """A refusal, or an object that is not there, as the class for it; None for what is neither."""
    if isinstance(error, (StoreRefused, StoreFailed)):
        return None
    if "NO_SUCH_KEY" in str(error):  # pyarrow knows it of reading, not of copying
        return FileNotFoundError(errno.ENOENT, cause(error))
    found = _REFUSED.search(str(error))
    if found is None:
        return None
    operation, code = _OPERATION.search(str(error)), _UNNAMED.search(str(error))
    what = f"refused {operation[1]}" if operation else "refused"
    return StoreRefused(
        errno.EACCES,
        f"the store {what} ({code[1] if code else found[0]}); check the credentials in the environment and what they "
        "may do: raybert lists and reads its input, and lists, reads, writes, copies and deletes in its output",
    )


class Patient(pafs.FileSystemHandler):  # type: ignore[misc]
    """A pyarrow filesystem whose operations are tried again, and whose files are read on where they broke off.

    An output stream is passed on as it is: only who has all bytes can begin again (`Store` does).

    Args:
        inner: the filesystem.
        patience: of its operations.
    """

    def __init__(self, inner: Any, patience: Patience = PATIENCE) -> None:
        self._inner = inner
        self._try = patience

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patient) and bool(self._inner == other._inner)

    def __hash__(self) -> int:
        return hash(self._inner.type_name)

    def get_type_name(self) -> str:
        """As pyarrow asks."""
        return str(self._inner.type_name)

    def normalize_path(self, path: str) -> str:
        """As pyarrow asks."""
        return str(self._inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        """As pyarrow asks."""
        return self._try(lambda: self._inner.get_file_info(paths))

    def get_file_info_selector(self, selector: Any) -> Any:
        """As pyarrow asks."""
        return self._try(lambda: self._inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        """As pyarrow asks."""
        self._try(lambda: self._inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        """As pyarrow asks."""
        self._try(lambda: self._inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """As pyarrow asks."""
        self._try(lambda: self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        """As pyarrow asks; a whole store is never emptied."""
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        """As pyarrow asks."""
        self._try(lambda: self._inner.delete_file(path))

    def move(self, source: str, target: str) -> None:
        """As pyarrow asks; once: a second try would miss what the first one moved."""
        self._inner.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        """As pyarrow asks."""
        self._try(lambda: self._inner.copy_file(source, target))

    def open_input_file(self, path: str) -> Any:
        """As pyarrow asks."""
        return pa.PythonFile(_PatientFile(self._inner, path, self._try), mode="r")

    open_input_stream = open_input_file

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """As pyarrow asks."""
        return self._inner.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """As pyarrow asks."""
        return self._inner.open_append_stream(path, metadata=metadata)


class _PatientFile:
    """A file as Python has them, of known size; each read is tried again at its own place, on a new connection."""

    def __init__(self, inner: Any, path: str, patience: Patience) -> None:
        self._inner, self._path, self._try = inner, path, patience
        self._at = 0
        self._file: Any = None
        self._size = int(self._try(self._opened_size))
        self.closed = False

    def _opened_size(self) -> int:
        self._file = self._inner.open_input_file(self._path)
        return int(self._file.size())

    def read(self, size: int = -1) -> bytes:
        """All of ``size`` bytes, fewer only where the file ends."""
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._try(lambda: self._read(wanted)) if wanted else b""
        self._at += wanted
        return data

    def _read(self, wanted: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._inner.open_input_file(self._path)
            self._file.seek(self._at)
            data = bytes(self._file.read(wanted))
        except BaseException:
            self._file = None
            raise
        if len(data) != wanted:
            self._file = None
            raise CutShort(errno.EIO, f"{wanted} bytes were asked for at {self._at} and {len(data)} arrived")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """As for any file."""
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def tell(self) -> int:
        """As for any file."""
        return self._at

    def readable(self) -> bool:
        """As for any file."""
        return True

    def seekable(self) -> bool:
        """As for any file."""
        return True

    def writable(self) -> bool:
        """As for any file."""
        return False

    def flush(self) -> None:
        """As for any file."""

    def close(self) -> None:
        """As for any file."""
        self.closed = True
        self._file = None
