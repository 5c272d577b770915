"""The command line: ``raybert``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 ok, 1 failed, 2 bad usage or input, 130 Ctrl-C.

    Args:
        arguments: without the program's name; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_run([word for word in given if word != "--debug"], debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:  # noqa: PLR0911  one line an outcome
    import typer.exceptions

    from raybert.cli.app import app
    from raybert.errors import RaybertError

    try:  # the one place where errors become words and exit codes
        app(args=arguments, prog_name="raybert", standalone_mode=False)
    except RaybertError as error:
        return _say(error, str(error), error.exit_code, debug=debug)
    except typer.exceptions.TyperException as error:
        # Bare `raybert` raises one without a message: its help is on the screen already.
        message = error.format_message()
        return _say(error, message, error.exit_code, debug=debug) if message else error.exit_code
    except typer.exceptions.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.exceptions.Abort):
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # the reader of our stdout went away: `raybert predict ... | head`
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001
        return _say(error, f"{type(error).__name__}: {error} (a bug in raybert? --debug shows where)", 1, debug=debug)
    return 0


def _say(error: Exception, message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    return code
