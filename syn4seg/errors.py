"""How a command ends: what a person can mend is a `UserError`; every other exception is a fault of this program."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Something that the person at the terminal can mend: one message with key, value, expected and remedy; exit code 2."""


class StoreError(UserError):
    """A file system or object store that cannot be written or read: no fault of any row, so the stream stops."""


class DamagedError(UserError):
    """A file of a run that is damaged, missing or not of this program: it costs what it holds and nothing else."""


class WorkerError(Exception):
    """A process of the job failed with an exception that is no `UserError`.

    The message is one sentence; the process's own traceback is a note (`add_note`), and so reaches the file of the traceback.
    """


class Interrupted(BaseException):
    """Ctrl-C or a termination signal; a class of its own, because the command line library swallows KeyboardInterrupt.

    Its text is what the person reads at the end; exit code 130.
    """


STORE_CLIENTS = ("botocore", "aiobotocore", "s3fs", "gcsfs", "google", "aiohttp", "fsspec")
"""Packages whose errors are those of an object store; not all of them are OSError."""
ENVIRONMENT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENOMEM, errno.ESTALE)
"""Codes of an OSError that says something of the machine and not of this program."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean X?" with the known word nearest to an unknown one; "" if none is near."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def catch_signals() -> None:
    """Let Ctrl-C and a termination signal raise `Interrupted` in the main thread; another thread catches none."""
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupt(*_: object) -> None:
        raise Interrupted("stopped; the same command goes on from here")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def interruption(error: BaseException) -> Interrupted | None:
    """Return the interruption that another exception hides: compiled code may turn it into a SystemError."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None or isinstance(seen, Interrupted):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def describe_error(error: Exception) -> tuple[int, str]:
    """Return the exit code and the line that end a command.

    The traceback of a fault of this program goes to a file, or with SYN4SEG_DEBUG=1 to the terminal.
    """
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRNOS:
        place = f"{error.filename}: " if error.filename else ""
        return 2, f"{place}{error.strerror}; mend the space or the rights there, and run the same command again"
    line = " ".join(str(error).split())[:300] or "no message"
    if type(error).__module__.partition(".")[0] in STORE_CLIENTS:
        return 2, f"the object store: {line}; mend the rights or the connection, and run the same command again, which goes on"
    text = "".join(traceback.format_exception(error))
    if os.environ.get("SYN4SEG_DEBUG") == "1":
        print(text, file=sys.stderr)
        place = "the traceback is above"
    else:
        with tempfile.NamedTemporaryFile("w", prefix="syn4seg-traceback-", suffix=".txt", delete=False) as file:
            file.write(text)
        place = f"the traceback is in {file.name} (SYN4SEG_DEBUG=1 shows it here)"
    return 3, f"a fault of this program, or of code that it was given: {type(error).__name__}: {line}; {place}"
