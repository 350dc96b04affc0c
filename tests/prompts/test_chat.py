"""The chat agent against a real server on this machine that answers as badly as servers do."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import socket
import threading
import time
from typing import Any

import pytest

from syn4seg.config.class_words import ClassWords
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.models import endpoint as endpoints
from syn4seg.models.endpoint import TRIES, endpoint
from syn4seg.models.renderer import BagOfWords
from syn4seg.prompts.agents import load_agent
from syn4seg.prompts.bank import NEAR, OFF_CLASS, REPEATED, build_bank, unit_rows
from syn4seg.prompts.chat import SILENT_ROUNDS, ChatAgent
from syn4seg.prompts.grammar import GrammarAgent
from syn4seg.stages.checks import check
from syn4seg.stages.plan import make_plan
from syn4seg.store.rundir import RunDir
from tests.shared_endpoint import KEY, LATE, PATIENCE, SHORT, Endpoint, failed

STAR = ["a red star on sand", "two small blue striped stars on night", "a big green dotted tilted star on grass"]


def said(content: Any, **message: Any) -> tuple[int, dict[str, str], bytes]:
    """A chat completion with this text."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text} | message}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "tiny", "choices": [choice]}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def agent(server: Endpoint | str, kind: type[ChatAgent] = ChatAgent, **changes: Any) -> ChatAgent:
    url = server if isinstance(server, str) else server.url
    given = {
        "world": "embedded",
        "seed": 0,
        "base_url": url,
        "key_variable": "A_KEY",
        "per_round": 3,
        "timeout": PATIENCE,
        "first_wait": 0.001,
    }
    return kind("tiny", **(given | changes))


def bank_of(asked: ChatAgent, size: int = 3, patience: int = 50):
    encoder = BagOfWords()
    return build_bank(
        asked, lambda texts: unit_rows(encoder.encode(texts).pooled), "star", size=size, lambda_prompt=0.97, patience=patience
    )


# ------------------------------------------------------------------------------------------------ bad answers
class Impatient(ChatAgent):
    """A chat agent that waits for `SHORT` where the next answer is `LATE`, and for as long as it takes where it is not."""

    server: Endpoint

    def _ask(self, messages: Any, seed: int):
        server, count = self.server, len(self.server.asked)
        is_late = server.answers[0] is LATE
        if self.client.timeout != (timeout := SHORT if is_late else PATIENCE):
            self.client.timeout = timeout
            self.client.client = self.client.open()
        answer = super()._ask(messages, seed)
        deadline = time.monotonic() + PATIENCE
        while is_late and len(server.asked) == count and time.monotonic() < deadline:
            time.sleep(0.01)  # the server has not even read it: the next question is another one
        return answer


def test_a_bank_is_built_through_every_kind_of_bad_answer():
    page = (200, {"Content-Type": "text/html"}, b"<html>busy</html>")
    broken = (200, {"Content-Type": "application/json"}, b'{"choices": [')
    answers = [
        said(""),
        said(None),
        said([STAR[0]]),
        said([STAR[0], STAR[0].upper() + "."]),
        said(["a red moon on sand"]),
        said("I cannot help with that."),
        LATE,
        failed(429),
        failed(500),
        said(STAR[:1]),
        page,
        broken,
        (200, {"Content-Type": "application/json"}, b'{"choices": []}'),
        failed(503),
        failed(502),
        LATE,
        failed(529),
        said({"prompts": [3, STAR[1], STAR[2], "never read"]}),
    ]
    with Endpoint(*answers) as server:
        asked = agent(server, Impatient)
        asked.server = server
        bank = bank_of(asked)
        assert [c.text for c in bank.accepted] == STAR and bank.stopped == "size" and not bank.warning
        assert len(server.answers) == 1 and len(server.asked) == len(answers)
        whys = [c.why for c in bank.refused]
        assert whys == [REPEATED, REPEATED, OFF_CLASS, OFF_CLASS, REPEATED, "empty"]
        last = server.question(-1)
        assert json.dumps(STAR[0]) in last.partition("Refused")[0]
        assert '"a red moon on sand": does not name the class' in last and f"{json.dumps(STAR[0])}: proposed before" in last
        assert '"I cannot help with that.": does not name the class' in last


def test_the_endpoint_is_told_what_was_too_close_to_what_was_accepted():
    with Endpoint(said([STAR[0], "on sand a red star"]), said(STAR)) as server:
        bank = bank_of(agent(server))
        assert NEAR in [c.why for c in bank.refused]
        assert '"on sand a red star": too similar to an accepted prompt' in server.question(1)
        assert "Refused" not in server.question(0) and "Accepted" not in server.question(0)


def test_the_endpoint_is_told_synonyms_and_definition_of_the_class_that_has_them():
    words = {"star": ClassWords(name="star", synonyms=("asterisk",), definition="a shape with five tips")}
    with Endpoint(said(STAR)) as server:
        asked = agent(server, words=words)
        asked.propose("star", 0, [], [])
        asked.propose("moon", 0, [], [])
        assert '"star" (a shape with five tips)' in server.question(0) and 'names "star" or "asterisk"' in server.question(0)
        assert '"moon". Every' in server.question(1) and "asterisk" not in server.question(1)


def test_a_request_names_model_temperature_and_a_seed_of_its_own():
    with Endpoint(said(STAR)) as server:
        asked = agent(server, temperature=0.5)
        for name, number in (("star", 0), ("star", 1), ("moon", 0), ("star", 0)):
            asked.propose(name, number, [], [])
        agent(server, seed=1).propose("star", 0, [], [])
        assert {(a["model"], a["temperature"]) for a in server.asked} == {("tiny", 0.5), ("tiny", 1.0)}
        seeds = [a["seed"] for a in server.asked]
        assert seeds[0] == seeds[3] and len(set(seeds)) == 4
        assert server.headers[0]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_takes_no_seed_is_asked_without(status: int):
    def picky(body):
        return failed(status, "Unrecognized argument: seed") if "seed" in body else said(STAR)

    with Endpoint(picky) as server:
        asked = agent(server)
        assert asked.propose("star", 0, [], []) == STAR == asked.propose("star", 1, [], [])
        assert ["seed" in a for a in server.asked] == [True, False, False]


# ------------------------------------------------------------------------------------------------- no answers
def test_an_endpoint_that_is_silent_for_good_ends_with_an_error_after_a_few_rounds():
    with Endpoint(failed(500, f"overloaded {KEY}")) as server:
        with pytest.raises(
            UserError, match=rf"has not answered for {SILENT_ROUNDS} rounds of {TRIES} tries.*500.*prompts\.timeout"
        ):
            bank_of(agent(server), patience=10_000)
        assert len(server.asked) == SILENT_ROUNDS * TRIES


def test_a_reply_in_between_starts_the_count_anew():
    silent = [failed(503)] * (TRIES * (SILENT_ROUNDS - 1))
    with Endpoint(*silent, said(STAR[:1]), *silent, said(STAR)) as server:
        assert len(bank_of(agent(server)).accepted) == 3


def test_silent_rounds_cost_patience():
    with Endpoint(failed(503)) as server:
        bank = bank_of(agent(server), patience=SILENT_ROUNDS - 1)
    assert bank.stopped == "patience" and "0 of 3 prompts" in bank.warning


def test_waits_double_and_the_endpoint_may_ask_for_longer_ones_within_reason(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(endpoints.time, "sleep", waits.append)
    with Endpoint(failed(500), failed(500), failed(500), said(STAR)) as server:
        agent(server, first_wait=2.0).propose("star", 0, [], [])
    assert waits == [2, 4, 8]
    waits.clear()
    longer = [failed(429, "slow down", **{"Retry-After": wait}) for wait in ("7", "1e9", "soon", "0")]
    with Endpoint(*longer) as server:
        assert agent(server, first_wait=2.0).propose("star", 0, [], []) == []
    assert waits == [7, 60, 8]


@pytest.mark.parametrize(
    "status, error, remedy",
    [
        (401, f"Incorrect API key provided: {KEY}", "environment variable A_KEY to a key that may use tiny"),
        (403, "not allowed", "environment variable A_KEY"),
        (404, "The model `tiny` does not exist", r"check prompts\.llm=tiny.*/v1/models.*ends in /v1"),
        (400, "temperature must be 1", r"prompts\.temperature=1"),
        (413, "too large", r"check prompts\.llm=tiny"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "no credit"),
    ],
)
def test_what_no_waiting_can_mend_is_an_error_at_once(status: int, error: Any, remedy: str):
    with Endpoint(failed(status, error)) as server:
        with pytest.raises(UserError, match=rf"http://127\.0\.0\.1:\d+/v1 refuses the request .*{status}.*{remedy}") as caught:
            bank_of(agent(server))
        assert len(server.asked) == (2 if status == 400 else 1)
        assert KEY not in str(caught.value) and caught.value.__context__ is None and caught.value.__cause__ is None


def test_nobody_there_is_an_error_at_once_but_only_at_the_first_question():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}/v1: nobody answers there.*refused.*prompts\.base_url"):
        bank_of(agent(f"http://127.0.0.1:{port}/v1"))
    with Endpoint(said(STAR[:1])) as server:
        asked = agent(server)
        assert asked.propose("star", 0, [], [])
    assert asked.propose("star", 1, [], []) == []  # it was there a moment ago: a round without a reply


# ---------------------------------------------------------------------------------------------------- the key
def test_the_key_goes_to_the_endpoint_and_nowhere_else(small, tmp_path, caplog: pytest.LogCaptureFixture):
    def helpful(body):
        name = re.search(r'images of "(\w+)"', body["messages"][-1]["content"])
        assert name
        return said([f"your key is {KEY}, a {name[1]}", *GrammarAgent("embedded", 0, 8).propose(name[1], 0, [], [])])

    caplog.set_level(logging.DEBUG)
    with Endpoint(failed(500, f"Bearer {KEY}"), helpful) as server:
        config = load(
            None, [*small, "prompts.agent=chat", "prompts.llm=tiny", f"prompts.base_url={server.url}", "prompts.key_variable=A_KEY"]
        )
        run, notes = RunDir(tmp_path / "run"), []
        run.open(config)
        asked = agent(server, per_round=9)
        make_plan(config, run, check(config)[1], notes.append, asked, BagOfWords())
        assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)
    files = [p for p in run.root.rglob("*") if p.is_file()]
    assert len(list(run.root.glob("proposals/*.jsonl"))) == 4
    for text in (
        *(p.read_bytes().decode("latin-1") for p in files),
        caplog.text,
        *notes,
        repr(asked),
        f"{asked.client.place}",
        str(vars(asked)),
        str(vars(asked.client)),
    ):
        assert KEY not in text


def test_a_key_that_a_reply_spells_in_other_ways_is_hidden_too():
    escaped = '["a star with ' + KEY.replace("-", "\\u002d") + '"]'
    split = json.dumps([f"a star with {KEY[:5]}\u200b{KEY[5:]}"])
    with Endpoint(said(escaped), said(split)) as server:
        asked = agent(server)
        assert [asked.propose("star", i, [], []) for i in range(2)] == [["a star with ***"]] * 2


def test_a_word_that_stands_for_no_key_does_not_mangle_the_replies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "x")
    with Endpoint(said(["six foxes under a star"])) as server:
        assert agent(server).propose("star", 0, [], []) == ["six foxes under a star"]
        assert server.headers[0]["authorization"] == "Bearer x"


def test_a_redirect_is_refused_and_nothing_is_sent_there():
    with Endpoint(said(STAR)) as other:
        moved = 307, {"Location": f"{other.url}/chat/completions"}, b""
        with Endpoint(moved) as server, pytest.raises(UserError, match="refuses the request"):
            agent(server).propose("star", 0, [], [])
        assert server.headers[0]["authorization"] == f"Bearer {KEY}" and not other.headers


class Raw:
    """A server that sends bytes of its own, a chunk at a time, until the other side hangs up."""

    def __init__(self, head: bytes, chunk: bytes, pause: float = 0.0):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url, self.sent = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1", 0
        self.parts = head, chunk, pause
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            head, chunk, pause = self.parts
            with contextlib.suppress(OSError), connection:
                connection.recv(65536)
                connection.sendall(head)
                while self.sent < 200_000_000:
                    connection.sendall(chunk)
                    self.sent += len(chunk)
                    time.sleep(pause)

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        self.socket.close()


@pytest.mark.parametrize(
    ("head", "chunk", "pause", "timeout", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.2, 1.0, "no whole reply within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b" ", 0.2, 1.0, "no whole reply within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4000000000\r\n\r\n", b" " * 65536, 0.0, PATIENCE, "more than 4,000,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", gzip.compress(b"0" * 10**6), 0.0, PATIENCE, "compressed"),
    ],
)
def test_a_reply_without_end_costs_one_deadline_and_a_few_megabytes(head, chunk, pause, timeout, problem):
    with Raw(head, chunk, pause) as server:
        asked, started = agent(server.url, timeout=timeout), time.monotonic()
        answers = [asked._ask([{"role": "user", "content": "x"}], 0) for _ in range(2)]
        assert all(problem in answer.problem and answer.again for answer in answers), answers
        assert time.monotonic() - started < 8 and server.sent < 100_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"choices":' * 100_000,
        b"3",
        b'{"choices": ["a"]}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": [1]}]}',
        b"\xff\xfe",
    ],
)
def test_a_body_of_any_shape_is_a_round_without_prompts(body: bytes):
    with Endpoint((200, {"Content-Type": "application/json"}, body)) as server:
        assert agent(server).propose("star", 0, [], []) == []


def test_an_endpoint_on_this_machine_needs_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("A_KEY")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nor a proxy
    with Endpoint(said(STAR)) as server:
        made = load_agent("chat", world="embedded", seed=0, llm="tiny", base_url=server.url, key_variable="A_KEY")
        assert made.propose("star", 0, [], []) == STAR
    for url in ("http://localhost:1/v1", "http://[::1]:1/v1", "http://127.1.2.3/v1"):
        assert endpoint(url, "A_KEY").is_local


@pytest.mark.parametrize("url", [None, "https://example.org/v1", "http://10.0.0.7:8000/v1", "http://localhost.example.org/v1"])
def test_an_endpoint_elsewhere_needs_one_before_anything_is_sent(url: str | None, monkeypatch: pytest.MonkeyPatch):
    assert endpoint(url, "A_KEY").key == KEY
    monkeypatch.setenv("A_KEY", "  ")
    with pytest.raises(UserError, match=r"prompts\.key_variable=A_KEY: this environment variable is not set.*set it to your key"):
        load_agent("chat", world="natural", seed=0, llm="tiny", base_url=url, key_variable="A_KEY")


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch):
    for wrong in (f"{KEY}\nX: y", f"{KEY} {KEY}", f"{KEY}é"):
        monkeypatch.setenv("A_KEY", wrong)
        with pytest.raises(UserError, match="letters that no key has") as caught:
            endpoint(None, "A_KEY")
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "http://[x/v1",
        "https://host/v1?key=x",
        "https://host/v1#x",
        "http://a b/v1",
        "http://ho\x01st/v1",
        "http://host/v1\n",
        "http://.../v1",
        f"http://{'a' * 70}.org/v1",
    ],
)
def test_addresses_that_are_none_are_refused(url: str):
    with pytest.raises(UserError, match=r"prompts\.base_url=.*expected an address such as"):
        endpoint(url, "A_KEY")


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"ftp://me:{KEY}@host/v1",
        f"http://me:{KEY}@host:99999/v1",
        f"me:{KEY}@host",
        f"https://me:{KEY}?x@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        f"https://host/{KEY}/v1",
        f"https://{KEY}/v1",
    ],
)
def test_an_address_with_a_key_in_it_is_refused_without_showing_it(url: str):
    with pytest.raises(UserError, match=r"put the key into the environment variable A_KEY") as caught:
        endpoint(url, "A_KEY")
    assert KEY not in str(caught.value)


def test_an_address_that_the_http_library_refuses_is_an_error_of_ours():
    with pytest.raises(UserError, match=r"http://1\.2\.3\.999/v1 cannot be used .*correct prompts\.base_url"):
        agent("http://1.2.3.999/v1")
