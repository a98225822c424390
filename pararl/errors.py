"""Whatever ends a program is one line: what was wrong, where, and what to do."""

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import NoReturn

from pararl.config import ConfigError

EXPECTED = (RuntimeError, ValueError, OSError)
"""Kinds of errors whose messages are written for a person; those of others need their kind to be understood."""
UNFORESEEN = (RecursionError, NotImplementedError)
"""Kinds among these that Python or a library raises, never we."""

FULL = "os error 28"
"""How safetensors, which is written in Rust, tells of a full disk: not as an OSError."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers and ``docker stop`` send: a program ends on it as on Ctrl-C."""


def fail(message: str, code: int = 2) -> NoReturn:
    """Print ``message`` as one line and exit with ``code``: 2 for a user's mistake, 1 for a run that broke off."""
    print(f"pararl: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def in_words(error: BaseException) -> str:
    """What an error says, with its kind where that is none that we raise, and with what to do where a disk is full."""
    if isinstance(error, OSError) and error.strerror:
        files = [str(file) for file in (error.filename, error.filename2) if file is not None]  # of a copy both
        place = f"{' to '.join(files)}: " if files else ""
        remedy = " (free some space)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{place}{error.strerror}{remedy}"
    if FULL in str(error):
        return f"{type(error).__name__}: {error} (free some space)"
    if isinstance(error, EXPECTED) and not isinstance(error, UNFORESEEN) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def told(main: Callable[[], None]) -> Callable[[], None]:
    """A program whose every error is one line and an exit code.

    2 is a mistake in what was asked, 130 Ctrl-C, 143 SIGTERM, 1 all else.

    An error that nobody foresaw leaves its traceback in a file, which the line names.
    """

    @wraps(main)
    def run() -> None:
        before = signal.signal(signal.SIGTERM, _terminated) if threading.current_thread() is threading.main_thread() else None
        try:
            main()
            sys.stdout.flush()  # here, so that a reader that has gone is told of below
        except ConfigError as error:
            fail(str(error))
        except KeyboardInterrupt as error:
            fail("stopped", code=143 if isinstance(error, Terminated) else 130)
        except BrokenPipeError:  # `| head` has read enough; the interpreter must not try to flush again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except Exception as error:
            foreseen = isinstance(error, EXPECTED) and not isinstance(error, UNFORESEEN)
            fail(in_words(error) + ("" if foreseen else _traceback()), code=1)

        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)

    return run


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _traceback() -> str:
    """Keep the traceback of the error at hand; where, in words."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="pararl-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(traceback.format_exc())
    except OSError:
        return ""
    return f" (its traceback is in {log.name}: please report it)"
