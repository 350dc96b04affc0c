"""Asks an OpenAI-compatible endpoint, one request at a time. The key comes from the environment and goes to the endpoint only.

A reply has a deadline and a largest size; no redirect is followed, no compressed reply is decoded, and no proxy stands before an
endpoint of this machine. Whatever goes wrong comes back as an `Answer` in words without the key.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx2 as httpx  # the HTTP library of openai

from syn4seg.errors import UserError

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
MAX_BYTES = 4_000_000  # of a reply of text
TRIES = 4  # times that one thing is asked for
LONGEST_WAIT = 60.0  # seconds, also where the endpoint asks for more
SECRET = 8  # characters from which a key is hidden in texts; a shorter one is a word that stands for none


class Endpoint(NamedTuple):
    """Where to ask. `key` is never shown: it is empty in every text that is made of this."""

    address: str
    is_local: bool
    key: str

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"


def endpoint(base_url: str | None, key_variable: str, section: str = "prompts") -> Endpoint:
    """Return the checked address and the key of an endpoint; one on this machine may go without a key.

    Args:
        section: of the configuration that holds both, for the messages.

    Raises:
        UserError: no address of the form http://HOST:PORT/v1, one with a key in it, or no usable key in the environment.
    """
    address, key = base_url or OPENAI, os.environ.get(key_variable, "").strip()
    if "@" in address or (len(key) >= SECRET and key in address):
        raise UserError(
            f"{section}.base_url holds a user name or a key: it would be written to the run; put the key into the "
            f"environment variable {key_variable} and nowhere else"
        )
    host = _host(address)
    if not host:
        shown = re.split(r"[?#]", address)[0]
        raise UserError(f"{section}.base_url={shown!r}: expected an address such as http://127.0.0.1:8000/v1")
    local = _is_loopback(host)
    if not key and not local:
        raise UserError(
            f"{section}.key_variable={key_variable}: this environment variable is not set, and {host} is not this "
            "machine; set it to your key (to any word if the endpoint asks for none)"
        )
    if not all("!" <= c <= "~" for c in key):
        raise UserError(
            f"{section}.key_variable={key_variable}: this environment variable holds spaces, line ends or letters that "
            "no key has; set it to the key alone"
        )
    return Endpoint(address, local, key)


def _host(address: str) -> str:
    """Return the host of an address at which an endpoint can be; "" if it is none."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        return ""
    plain = address.isprintable() and " " not in address
    return host if plain and parts.scheme in ("http", "https") and not (parts.query or parts.fragment) else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Answer(NamedTuple):
    """What one request came to: a reply, or what went wrong and whether asking again may help.

    Attributes:
        reply: what the caller made of the reply.
        problem: in one line without the key; empty if there is a reply.
        again: whether the same request may succeed later.
        wait: seconds that the endpoint asks one to wait.
        status: HTTP status of an answer that is an error, else 0: then nobody knows whether the endpoint did its work.
        code: the endpoint's own name of the error, or "".
        unsent: whether nothing can have been received: there was no connection.
    """

    reply: Any = None
    problem: str = ""
    again: bool = False
    wait: float = 0.0
    status: int = 0
    code: str = ""
    unsent: bool = False


class EndpointClient:
    """Sends requests to one endpoint."""

    def __init__(self, place: Endpoint, *, section: str, user: str, timeout: float, max_bytes: int = MAX_BYTES):
        """Take the settings; nothing is sent yet.

        Args:
            section: of the configuration that holds `base_url` and `timeout`, for the messages.
            user: the key that asks for the endpoint, with which messages begin, e.g. "prompts.agent=chat".
            timeout: seconds for a whole reply.
            max_bytes: of a reply.

        Raises:
            UserError: the HTTP library cannot use the address.
        """
        self.place, self.section, self.timeout, self.max_bytes = place, section, timeout, max_bytes
        self.where = f"{user}: {place.address}"
        self.has_answered = False
        self.client = self.open()

    def open(self) -> openai.OpenAI:
        """Return a client that follows no redirect, asks for no compressed replies, and uses no proxy to this machine."""
        import openai

        try:
            return openai.OpenAI(
                api_key=self.place.key or "none",
                base_url=self.place.address,
                timeout=self.timeout,
                max_retries=0,
                default_headers={"Accept-Encoding": "identity"},
                http_client=openai.DefaultHttpxClient(
                    trust_env=not self.place.is_local, follow_redirects=False, event_hooks={"response": [self._bound]}
                ),
            )
        except Exception as error:  # noqa: BLE001 - whatever the HTTP library says of an address that it cannot use
            raise UserError(
                f"{self.where} cannot be used ({self.redact(str(error))}); correct {self.section}.base_url, or the proxy "
                "in the environment"
            ) from None

    def ask(self, send: Callable[[openai.OpenAI], Any]) -> Answer:
        """Return one request. Errors are told here, in words without the key, so that none travels on with what the endpoint said.

        Args:
            send: sends it with the client that it is given, and returns what it makes of the reply.
        """
        import openai

        nobody = f"{self.where}: nobody answers there ({{}}); start the endpoint, or correct {self.section}.base_url"
        client = self.client
        watch = threading.Timer(self.timeout, client.close)  # the HTTP library limits each read, not the whole reply
        watch.start()
        started = time.monotonic()
        try:
            reply = send(client)
        except _UnwantedReply as error:
            return Answer(problem=str(error), again=True)
        except openai.APIStatusError as error:
            status, code = error.status_code, str(error.code or "")
            again = (status in (408, 409, 429) or status >= 500) and code != "insufficient_quota"
            return Answer(None, self.redact(error.message), again, _retry_after(error), status, code)
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout" and not self.has_answered:
                return Answer(problem=nobody.format(f"no connection within {self.section}.timeout"), unsent=True)
            return Answer(problem=f"no reply within {self.timeout:g} seconds", again=True)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _UnwantedReply):
                return Answer(problem=str(error.__cause__), again=True)
            if time.monotonic() - started >= self.timeout:
                return Answer(problem=f"no whole reply within {self.timeout:g} seconds", again=True)
            unsent = type(error.__cause__).__name__ == "ConnectError"
            return Answer(problem=nobody.format(self.redact(str(error.__cause__ or error))), again=self.has_answered, unsent=unsent)
        except (openai.APIError, ValueError, RecursionError) as error:
            return Answer(problem=f"the reply is not readable: {type(error).__name__}", again=True)
        finally:
            watch.cancel()
            if time.monotonic() - started >= self.timeout:
                self.client = self.open()
        return Answer(reply)

    def hidden(self, text: str) -> str:
        """Return `text` without the key, should the endpoint repeat it."""
        return text.replace(self.place.key, "***") if len(self.place.key) >= SECRET else text

    def redact(self, text: str) -> str:
        """Return an error of the endpoint in one short line without the key."""
        return " ".join(self.hidden(text).split())[:300]

    def _bound(self, response: httpx.Response) -> None:
        """Limit a reply before anything decodes it.

        Raises:
            _UnwantedReply: it is compressed; while it is read: it has more than `max_bytes`.
        """
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.strip().lower() != "identity":
            raise _UnwantedReply(f"the reply is compressed ({encoding[:20]}), which was not asked for")
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _BoundedStream(response.stream, self.max_bytes)


def pause(answer: Answer, attempt: int, first_wait: float) -> None:
    """Wait before the next try: twice as long after each attempt (from 0), or as long as the endpoint asks for, within reason."""
    time.sleep(min(LONGEST_WAIT, max(answer.wait, first_wait * 2**attempt)))


class _UnwantedReply(Exception):
    """A reply that is compressed or too large; it says so in one line."""


class _BoundedStream(httpx.SyncByteStream):
    """The bytes of a reply, up to a limit."""

    def __init__(self, stream: httpx.SyncByteStream, limit: int):
        self.stream, self.limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > self.limit:
                raise _UnwantedReply(f"the reply has more than {self.limit:,} bytes")
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()


def _retry_after(error: Any) -> float:
    """Return the seconds that the endpoint asks one to wait; 0 if it does not say."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
