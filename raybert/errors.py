"""Every error that raybert raises on purpose, drawn before defined.

    RaybertError                 exit 1   the run failed
    ├── OutputError              exit 1   the disk or object store refused: full, unwritable
    ├── DeviceError              exit 1   this machine cannot do what the run's settings say
    ├── RunFailed                exit 1   the job ended without all of its splits
    ├── RowError                 exit 2   one text of a call can't be processed; names its row
    └── UsageError               exit 2   what the caller asked for can't be meant
        ├── CheckpointError      exit 2   a checkpoint is missing, damaged, or not a BERT we can honour
        ├── InputError           exit 2   an input path, file or column
        └── SettingsError        exit 2   an option, or one that differs from the run's manifest

A message is one line: place, value, limit, remedy.
"""

from __future__ import annotations


class RaybertError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1


class OutputError(RaybertError):
    """Writing an output failed: a full disk, a folder without permission, a store that refuses."""


class DeviceError(RaybertError):
    """This machine lacks what the run's settings demand: a device, a dtype, a library version."""


class RunFailed(RaybertError):
    """A job ended without all of its splits; what was committed stays and the next run continues."""


class RowError(RaybertError):
    """One text of a call can't be processed.

    Attributes:
        row: position of the text in the call, from 0.
        reason: the typed reason that a batch job would put into its quarantine.
    """

    exit_code = 2

    def __init__(self, row: int, reason: str, detail: str) -> None:
        super().__init__(f"row {row}: {detail}")
        self.row = row
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str]]:
        """Rebuild from the three arguments: Ray carries errors between processes as pickles."""
        return (type(self), (self.row, self.reason, self.detail))


class UsageError(RaybertError):
    """What the caller asked for is malformed or can't be meant."""

    exit_code = 2


class CheckpointError(UsageError):
    """A checkpoint is missing, damaged, or holds something that raybert can't honour."""


class InputError(UsageError):
    """An input path, file, format or column is not what the call says."""


class SettingsError(UsageError):
    """An option is unknown, out of range, or differs from the run's manifest."""
