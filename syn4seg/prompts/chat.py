"""The prompt agent that asks any OpenAI-compatible endpoint. The key comes from the environment and goes to the endpoint only.

What no waiting can mend (no key, nobody there, no such model) is an error at once. Late replies, 429 and 5xx are asked for
again after growing waits; a round without a reply is empty, and several in a row are an error: nothing spins.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx2 as httpx  # the HTTP library of openai

from syn4seg.config.class_words import ClassWords
from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.protocols import PromptWorld
from syn4seg.prompts.proposals import build_messages, parse_reply

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
MAX_BYTES = 4_000_000  # of a reply
TRIES = 4  # times that a round is asked for
SILENT_ROUNDS = 5  # rounds in a row without a reply after which the endpoint counts as dead
LONGEST_WAIT = 60.0  # seconds, also where the endpoint asks for more
SECRET = 8  # characters from which a key is hidden in texts; a shorter one is a word that stands for none


class Endpoint(NamedTuple):
    """Where to ask. `key` is never shown: it is empty in every text that is made of this."""

    address: str
    is_local: bool
    key: str

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"


def endpoint(base_url: str | None, key_variable: str) -> Endpoint:
    """Return the checked address and the key of an endpoint; one on this machine may go without a key.

    Raises:
        UserError: no address of the form http://HOST:PORT/v1, one with a key in it, or no usable key in the environment.
    """
    address, key = base_url or OPENAI, os.environ.get(key_variable, "").strip()
    if "@" in address or (len(key) >= SECRET and key in address):
        raise UserError(
            "prompts.base_url holds a user name or a key: it would be written to the run; put the key into the "
            f"environment variable {key_variable} and nowhere else"
        )
    host = _host(address)
    if not host:
        shown = re.split(r"[?#]", address)[0]
        raise UserError(f"prompts.base_url={shown!r}: expected an address such as http://127.0.0.1:8000/v1")
    local = _is_loopback(host)
    if not key and not local:
        raise UserError(
            f"prompts.key_variable={key_variable}: this environment variable is not set, and {host} is not this "
            "machine; set it to your key (to any word if the endpoint asks for none)"
        )
    if not all("!" <= c <= "~" for c in key):
        raise UserError(
            f"prompts.key_variable={key_variable}: this environment variable holds spaces, line ends or letters that "
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


class _Answer(NamedTuple):
    """What one request came to: a reply, or what went wrong and whether asking again may help."""

    text: str = ""
    problem: str = ""
    again: bool = False
    wait: float = 0.0


class ChatAgent:
    """Asks a chat model for JSON arrays of prompts, showing it what was accepted and refused, and why."""

    def __init__(
        self,
        model: str,
        *,
        world: PromptWorld,
        seed: int,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        per_round: int = 16,
        temperature: float = 1.0,
        timeout: float = 60.0,
        first_wait: float = 2.0,
        words: Mapping[str, ClassWords] = {},
    ):
        """Take the settings; nothing is sent yet.

        Args:
            model: its name at the endpoint.
            seed: sent with every request, hashed with class and round, to endpoints that take one.
            first_wait: seconds before the second try; doubled for every further one.
            words: synonyms and definitions, by the name under which a class is asked for.

        Raises:
            UserError: as `endpoint`.
        """
        self.model, self.seed, self.key_variable, self.timeout = model, seed, key_variable, timeout
        self.per_round, self.temperature, self.first_wait = per_round, temperature, first_wait
        self.world: PromptWorld = world
        self.words = words
        self.endpoint = endpoint(base_url, key_variable)
        self.client = self._open()
        self.takes_seed, self.has_answered, self.silent_rounds = True, False, 0

    def _open(self) -> openai.OpenAI:
        """Return a client that follows no redirect, asks for no compressed replies, and uses no proxy to this machine."""
        import openai

        try:
            return openai.OpenAI(
                api_key=self.endpoint.key or "none",
                base_url=self.endpoint.address,
                timeout=self.timeout,
                max_retries=0,
                default_headers={"Accept-Encoding": "identity"},
                http_client=openai.DefaultHttpxClient(
                    trust_env=not self.endpoint.is_local, follow_redirects=False, event_hooks={"response": [_bound]}
                ),
            )
        except Exception as error:  # noqa: BLE001 - whatever the HTTP library says of an address that it cannot use
            raise UserError(
                f"{self._where()} cannot be used ({self._redact(str(error))}); correct prompts.base_url, or the proxy "
                "in the environment"
            ) from None

    def propose(self, class_name: str, round_index: int, accepted: list[str], refused: list[tuple[str, str]]) -> list[str]:
        """Return one round of prompts; none if the endpoint does not answer in time or its reply holds none.

        Raises:
            UserError: the endpoint refuses the request, nobody is there, or it has been silent for `SILENT_ROUNDS` rounds.
        """
        messages = build_messages(class_name, self.world, self.per_round, accepted, refused, words=self.words.get(class_name))
        seed = int(embedded.seeded("chat", self.seed, class_name, round_index).integers(2**31))
        answer = _Answer()
        for attempt in range(TRIES):
            answer = self._ask(messages, seed)
            if not answer.problem:
                self.has_answered, self.silent_rounds = True, 0
                return [self._hidden(text) for text in parse_reply(answer.text, self.per_round)]  # JSON may have escaped it
            if not answer.again:
                raise UserError(answer.problem)
            if attempt < TRIES - 1:
                time.sleep(min(LONGEST_WAIT, max(answer.wait, self.first_wait * 2**attempt)))
        self.silent_rounds += 1
        if self.silent_rounds == SILENT_ROUNDS:
            raise UserError(
                f"{self._where()} has not answered for {SILENT_ROUNDS} rounds of {TRIES} tries ({answer.problem}); "
                "run the same command again later, which goes on from here, or raise prompts.timeout"
            )
        return []

    def _where(self) -> str:
        return f"prompts.agent=chat: {self.endpoint.address}"

    def _ask(self, messages: list[dict[str, str]], seed: int) -> _Answer:
        """Return one request. Errors are told here, in words without the key, so that none travels on with what the endpoint
        said."""
        import openai

        body: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": self.temperature}
        body |= {"seed": seed} if self.takes_seed else {}
        nobody = f"{self._where()}: nobody answers there ({{}}); start the endpoint, or correct prompts.base_url"
        client = self.client
        watch = threading.Timer(self.timeout, client.close)  # the HTTP library limits each read, not the whole reply
        watch.start()
        started = time.monotonic()
        try:
            content = _content(client.chat.completions.create(**body))
        except _UnwantedReply as error:
            return _Answer(problem=str(error), again=True)
        except openai.APIStatusError as error:
            status, reason = error.status_code, self._redact(error.message)
            if status in (400, 422) and self.takes_seed:
                self.takes_seed = False
                return self._ask(messages, seed)
            if (status in (408, 409, 429) or status >= 500) and error.code != "insufficient_quota":
                return _Answer(problem=reason, again=True, wait=_retry_after(error))
            return _Answer(problem=f"{self._where()} refuses the request ({reason}); {self._remedy(status)}")
        except openai.APITimeoutError as error:
            if type(error.__cause__).__name__ == "ConnectTimeout" and not self.has_answered:
                return _Answer(problem=nobody.format("no connection within prompts.timeout"))
            return _Answer(problem=f"no reply within {self.timeout:g} seconds", again=True)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _UnwantedReply):
                return _Answer(problem=str(error.__cause__), again=True)
            if time.monotonic() - started >= self.timeout:
                return _Answer(problem=f"no whole reply within {self.timeout:g} seconds", again=True)
            return _Answer(problem=nobody.format(self._redact(str(error.__cause__ or error))), again=self.has_answered)
        except (openai.APIError, ValueError, RecursionError) as error:
            return _Answer(problem=f"the reply is not readable: {type(error).__name__}", again=True)
        finally:
            watch.cancel()
            if time.monotonic() - started >= self.timeout:
                self.client = self._open()
        if content is None:
            return _Answer(problem="the reply is no chat completion; prompts.base_url most often ends in /v1", again=True)
        return _Answer(self._hidden(content))

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"set the environment variable {self.key_variable} to a key that may use {self.model}"
        if status == 404:
            return (
                f"check prompts.llm={self.model} (the endpoint lists its models under {self.endpoint.address}/models) and "
                "prompts.base_url, which most often ends in /v1"
            )
        if status == 429:
            return "the account has no credit left"
        return f"check prompts.llm={self.model} and prompts.temperature={self.temperature:g}"

    def _hidden(self, text: str) -> str:
        """Return `text` without the key, should the endpoint repeat it."""
        return text.replace(self.endpoint.key, "***") if len(self.endpoint.key) >= SECRET else text

    def _redact(self, text: str) -> str:
        """Return an error of the endpoint in one short line without the key."""
        return " ".join(self._hidden(text).split())[:300]


class _UnwantedReply(Exception):
    """A reply that is compressed or too large; it says so in one line."""


def _bound(response: httpx.Response) -> None:
    """Limit a reply before anything decodes it.

    Raises:
        _UnwantedReply: it is compressed; while it is read: it has more than `MAX_BYTES`.
    """
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise _UnwantedReply(f"the reply is compressed ({encoding[:20]}), which was not asked for")
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx.SyncByteStream):
    """The bytes of a reply, up to `MAX_BYTES`."""

    def __init__(self, stream: httpx.SyncByteStream):
        self.stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > MAX_BYTES:
                raise _UnwantedReply(f"the reply has more than {MAX_BYTES:,} bytes")
            yield chunk

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()


def _content(reply: Any) -> str | None:
    """Return the text of a chat completion, "" if it has none; None if it is something else."""
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list):
        return None
    content = getattr(getattr(choices[0], "message", None), "content", None) if choices else None
    return content if isinstance(content, str) else ""


def _retry_after(error: Any) -> float:
    """Return the seconds that the endpoint asks one to wait; 0 if it does not say."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0
