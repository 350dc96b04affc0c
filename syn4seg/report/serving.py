"""The report of a run on loopback, made again while the run goes on. Writes nothing, and serves nothing but its page and pictures.

GET /          the page, from memory       GET /version    which one it is; the page asks, and loads itself again
GET /images/...  /draws/...                the pictures of the run that the page links to
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from syn4seg.errors import UserError
from syn4seg.report.page import make_report
from syn4seg.store.files import exists
from syn4seg.store.rundir import RunDir

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

HOST, PORT = "127.0.0.1", 8765
"""Where it listens: on loopback alone, at this port if it is free."""
LOOK_SECONDS = 1.0
"""Seconds between two looks at the files of the run."""
PAUSE, REST = 2.0, 4.0
"""Seconds between two pages at least, and as many times the seconds that the last one took: a fifth of a core at most."""
WATCHED = ("*", "draws/*/*", "draws/*/records/*", "draws/*/checkpoints/*", "images/*", "quarantined")
"""Files and folders of a local run whose times tell a change; none of them lists the samples one by one."""
IGNORED = ("report.html", "tensorboard", "logging")
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
_LINKED = re.compile(r"/(?:images|draws)/[^\\\x00]+")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


class LivePage:
    """The page of a run as it was when it was last made.

    Args:
        draw: as in `write_report`.
    """

    def __init__(self, run: RunDir, draw: int | None = None):
        self.root, self.draw = run.root, draw
        self.page, self.version, self.damage = b"", 0, []
        self.seen: object = None
        self.ended, self.took = -PAUSE, 0.0

    def make(self, progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Make the page.

        Raises:
            UserError: the run cannot be read.
        """
        seen, started, run = state_of(self.root), time.monotonic(), RunDir(self.root)
        self.page, self.damage = make_report(run, self.draw, self.root / "report.html", progress, str(self.version + 1))
        self.version += 1
        self.seen, self.ended = seen, time.monotonic()
        self.took = self.ended - started

    def refresh(self) -> bool:
        """Make the page again if the run has changed and the last one was not made just now; return whether it was made."""
        if time.monotonic() - self.ended < max(PAUSE, REST * self.took) or state_of(self.root) == self.seen:
            return False
        self.make()
        return True


def state_of(root: AnyPath) -> object:
    """Return what is another value after the run has changed: times and sizes of its files, of a remote run sizes alone."""
    if not isinstance(root, Path):
        names = ("metrics.jsonl", "results.json", "plan.parquet", "prompts.parquet")
        return [(name, (root / name).stat().st_size) for name in names if exists(root / name)]
    state = []
    for path in sorted(path for pattern in WATCHED for path in root.glob(pattern)):
        if path.relative_to(root).parts[0] not in IGNORED and not path.name.endswith(".partial"):
            try:
                facts = path.stat()
            except FileNotFoundError:  # renamed since it was listed
                continue
            state.append((str(path), facts.st_mtime_ns, facts.st_size))
    return state


def handler_of(live: LivePage) -> type[BaseHTTPRequestHandler]:
    """Return what answers the requests for a page."""

    class Answer(BaseHTTPRequestHandler):
        """Answers GET on loopback alone: another name for this machine in the header Host is an attack by another page."""

        timeout = 30

        def do_GET(self) -> None:
            host, path = self.headers.get("Host", "").rpartition(":")[0], unquote(urlsplit(self.path).path)
            if host not in (HOST, "localhost"):
                self._send(403, b"expected the address that the terminal shows\n", "text/plain")
            elif path in ("/", "/report.html"):
                self._send(200, live.page, "text/html; charset=utf-8")
            elif path == "/version":
                self._send(200, str(live.version).encode(), "text/plain")
            elif (picture := picture_at(live.root, path)) is not None:
                self._send(200, picture.read_bytes(), PICTURES[picture.suffix.lower()])
            else:
                self._send(404, b"nothing is here\n", "text/plain")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing: the terminal belongs to the command."""

    return Answer


def picture_at(root: AnyPath, path: str) -> Path | None:
    """Return the file of a picture of a local run that a path of a request names; None for anything else."""
    if not isinstance(root, Path) or not _LINKED.fullmatch(path):
        return None
    file = (root / path.lstrip("/")).resolve()
    inside = any(file.is_relative_to((root / folder).resolve()) for folder in ("images", "draws"))
    return file if inside and file.suffix.lower() in PICTURES and file.is_file() else None


def open_server(live: LivePage, port: int | None) -> ThreadingHTTPServer:
    """Return a server that listens, but does not answer yet.

    Args:
        port: None: `PORT`, or any free one if it is taken.

    Raises:
        UserError: the port cannot be had.
    """
    for number in (port,) if port is not None else (PORT, 0):
        try:
            server = ThreadingHTTPServer((HOST, number), handler_of(live))
        except OSError as error:
            if port is None and number and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise UserError(f"--port {number}: {error.strerror or error}; choose another one, or leave it out") from None
        server.daemon_threads = True
        return server
    raise AssertionError("port 0 is any free one")


def serve_live(live: LivePage, server: ThreadingHTTPServer, say: Callable[[str], None]) -> None:
    """Answer requests and follow the run until an interruption; a page that cannot be made again leaves the last one.

    Args:
        say: called with a sentence when that happens.
    """
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    failure = ""
    try:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                if live.refresh():
                    failure = ""
            except (UserError, OSError) as error:  # e.g. a file that is just being replaced
                live.ended = time.monotonic()
                if str(error) != failure:
                    say(f"the page stays as it was: {error}")
                failure = str(error)
    finally:
        server.shutdown()
        server.server_close()
