"""The command line: ``raybert``."""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 bad usage or input, 130 Ctrl-C.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    if sys.stdout is None:  # `>&-`
        sys.exit("error: stdout is closed; write `> /dev/null` to see no results")
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Behind "--" stand texts, whatever they look like.
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    words = [word for word in given[:end] if word != "--debug"]
    sys.exit(_run([*words, *given[end:]], debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:  # noqa: PLR0911  one line an outcome
    import typer.exceptions

    from raybert.cli.app import app
    from raybert.errors import RaybertError

    stdout = os.dup(1)  # rich puts /dev/null in its place when the pipe breaks
    try:  # the one place where errors become words and exit codes
        # typer turns its Exit, and Ctrl-C, into a return value: the code that a command asked for.
        code = app(args=arguments, prog_name="raybert", standalone_mode=False)
        sys.stdout.flush()
    except RaybertError as error:
        return _say(error, str(error), error.exit_code, debug=debug)
    except typer.exceptions.TyperException as error:
        # Bare `raybert` raises one without a message: its help is on the screen already.
        message = error.format_message()
        return _say(error, message, error.exit_code, debug=debug) if message else error.exit_code
    except (KeyboardInterrupt, typer.exceptions.Abort):
        return _interrupted()
    except (Exception, SystemExit) as error:  # noqa: BLE001  SystemExit is typer's and rich's answer to a broken pipe
        if _reader_gone(stdout):
            return 0
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _silence()
            where = error.filename or "stdout"
            return _say(error, f"{where}: no space left on the device; free some, or write elsewhere", 1, debug=debug)
        cause = error.__context__ if isinstance(error, SystemExit) else error
        assert isinstance(cause, Exception)
        return _say(cause, f"{type(cause).__name__}: {cause} (a bug in raybert? --debug shows where)", 1, debug=debug)
    if code == 130:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    sys.stderr.write("interrupted\n")
    return 130


def _reader_gone(stdout: int) -> bool:
    """Whether the reader of our stdout has what it wanted and left: ``raybert predict ... | head``."""
    poll = select.poll()
    poll.register(stdout, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    _silence()
    return True


def _silence() -> None:
    """Python flushes stdout once more when it ends, and would complain: let it go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _say(error: Exception, message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
