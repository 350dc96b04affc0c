"""Images from a service: a real server on this machine that answers well, badly, late, or not at all."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
import pytest

from syn4seg.errors import UserError
from syn4seg.models import endpoint as endpoints
from syn4seg.models.endpoint import TRIES
from syn4seg.models.image_service import SILENT_IMAGES, ImageService, MayNotAsk, ServiceImage, to_square
from tests.shared_endpoint import KEY, LATE, PATIENCE, SHORT, Endpoint, drawn, failed, picture

POLICY = {"message": "Your request was rejected by our safety system.", "code": "content_policy_violation"}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", KEY)


class Till:
    """Counts the requests that may have cost an image."""

    def __init__(self, allowed: int = 99):
        self.count, self.allowed = 0, allowed

    def before(self) -> None:
        if self.count >= self.allowed:
            raise MayNotAsk("no more")
        self.count += 1

    def undo(self) -> None:
        self.count -= 1


def service(server: Endpoint | str, **changes: Any) -> ImageService:
    url = server if isinstance(server, str) else server.url
    given = {"size": 64, "base_url": url, "key_variable": "A_KEY", "timeout": PATIENCE, "first_wait": 0.001}
    return ImageService("painter", **(given | changes))


def make(
    asked: ImageService, prompt: str = "a red kite over sand", seed: int = 2**40 + 7, till: Till | None = None
) -> ServiceImage:
    till = till or Till()
    return asked.make(prompt, seed, till.before, till.undo)


def test_a_request_says_all_that_an_image_depends_on_and_its_reply_is_the_image_with_the_seed():
    with Endpoint(drawn(picture(), revised_prompt=f"a very red kite {KEY}")) as server:
        asked = service(server)
        made = make(asked)
        np.testing.assert_array_equal(made.pixels, picture())
        assert made.fault == "" and made.audit == {"seed": (2**40 + 7) % 2**31, "revised_prompt": "a very red kite ***"}
        assert server.headers[0]["path"] == "/v1/images/generations"
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        expected = {"model": "painter", "prompt": "a red kite over sand", "n": 1, "size": "64x64"}
        assert server.asked == [expected | {"response_format": "b64_json", "seed": (2**40 + 7) % 2**31}]
        assert KEY not in f"{vars(asked)} {vars(asked.client)} {asked.facts()}"
        assert asked.facts() == {
            "model": "painter",
            "service": "127.0.0.1",
            "size": 64,
            "request_size": "64x64",
            "reproducible": False,
        }


def test_images_of_other_sizes_are_brought_to_the_size_and_a_small_one_can_be_asked_for():
    with Endpoint(drawn(picture((256, 128)))) as server:
        made = make(service(server, request_size="1024x1024"))
        assert server.asked[0]["size"] == "1024x1024" and made.pixels is not None and made.pixels.shape == (64, 64, 3)
        np.testing.assert_array_equal(made.pixels, to_square(picture((256, 128))[64:192], 64))
    half = to_square(np.full((32, 32, 3), 70, np.uint8), 64)
    assert half.shape == (64, 64, 3) and half.dtype == np.uint8 and (half == 70).all()


def test_what_a_service_does_not_take_is_left_out_from_then_on_and_the_seed_is_recorded_as_none():
    def picky(body):
        for name in ("seed", "response_format"):
            if name in body:
                return failed(400, f"Unknown parameter: '{name}'.")
        return drawn(picture())

    with Endpoint(picky) as server:
        asked, till = service(server), Till(1)
        assert make(asked, till=till).audit == {"seed": None} and make(asked).audit == {"seed": None}
        assert [("seed" in a, "response_format" in a) for a in server.asked] == [(1, 1), (0, 1), (0, 0), (0, 0)]
        assert till.count == 1, "an answer that is an error has made no image"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, POLICY),
        (403, "blocked by content filter"),
        (400, {"message": f"moderation says no, {KEY}", "code": None}),
        (422, "flagged by our safety checker"),
    ],
)
def test_a_refusal_of_one_prompt_costs_one_image_even_the_first(status: int, error: Any):
    with Endpoint(failed(status, error), drawn(picture())) as server:
        asked, till = service(server), Till()
        made = make(asked, "seed of violence", till=till)
        assert made.pixels is None and made.fault.startswith("the service refuses the prompt: ") and KEY not in made.fault
        assert till.count == 0 and make(asked).fault == ""


def test_a_prompt_that_says_safety_is_no_refusal_by_policy():
    with (
        Endpoint(failed(400, "size must be 1024x1024 (a safety vest)")) as server,
        pytest.raises(UserError, match=r"refuses the request .*synthesis\.request_size=64x64"),
    ):
        make(service(server), "a safety vest")


def test_an_odd_refusal_after_the_first_image_costs_one_image():
    with Endpoint(drawn(picture()), failed(400, "prompt is too long"), drawn(picture())) as server:
        asked = service(server)
        assert [make(asked).fault[:31] for _ in range(3)] == ["", "the service refuses the request", ""]


@pytest.mark.parametrize(
    ("status", "error", "remedy"),
    [
        (401, f"Incorrect API key provided: {KEY}", "environment variable A_KEY to a key that may use painter"),
        (403, "not allowed", "environment variable A_KEY"),
        (404, "no such model", r"check synthesis\.model=painter and synthesis\.base_url"),
        (400, "Invalid size", r"synthesis\.request_size=64x64"),
        (400, {"message": "limit reached", "code": "billing_hard_limit_reached"}, "no credit left"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "no credit left"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_what_concerns_every_image_ends_the_run_in_one_sentence(status: int, error: Any, remedy: str, earlier: bool):
    earlier = earlier and error != "Invalid size"  # after an image a bad request is that of one prompt
    with Endpoint(*([drawn(picture())] if earlier else []), failed(status, error)) as server:
        asked, till = service(server), Till()
        if earlier:
            make(asked)
        with pytest.raises(UserError, match=rf"synthesis\.source=api: http://127.* refuses the request .*{remedy}") as caught:
            make(asked, till=till)
        assert KEY not in str(caught.value) and "\n" not in str(caught.value) and till.count == 0
        assert len(server.asked) == 1 + earlier


def test_waiting_helps_against_429_5xx_and_late_replies_and_only_lost_ones_count(monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    monkeypatch.setattr(endpoints.time, "sleep", lambda s: waits.append(s))
    with Endpoint(failed(429, "slow", **{"Retry-After": "7"}), failed(500), failed(502), drawn(picture())) as server:
        till = Till()
        assert make(service(server, first_wait=2.0), till=till).fault == ""
        assert [w for w in waits if w > 0.5] == [7, 4, 8] and till.count == 2, "behind a gateway an image may have been made"


def test_a_late_reply_counts_as_an_image_and_no_more_are_asked_for_than_allowed():
    with Endpoint(LATE) as server:
        till = Till(2)
        made = make(service(server, timeout=SHORT), till=till)
        assert made.pixels is None and made.fault.endswith("reply within 0.3 seconds; no more") and till.count == 2
        assert len(server.asked) <= 2


def test_a_service_that_stays_silent_ends_the_run_after_a_few_images():
    with Endpoint(failed(503)) as server:
        asked, till = service(server), Till()
        faults = [make(asked, till=till).fault for _ in range(SILENT_IMAGES - 1)]
        assert all(fault.startswith(f"no image after {TRIES} tries: ") for fault in faults)
        with pytest.raises(UserError, match=rf"not answered for {SILENT_IMAGES} images.*goes on from here.*delete those"):
            make(asked, till=till)
        assert len(server.asked) == SILENT_IMAGES * TRIES and till.count == 0
    with Endpoint(*[failed(503)] * (TRIES * (SILENT_IMAGES - 1)), drawn(picture()), failed(503)) as server:
        asked = service(server)
        assert [bool(make(asked).fault) for _ in range(SILENT_IMAGES * 2 - 1)] == [True, True, False, True, True]


def test_nobody_there_is_one_sentence_and_costs_nothing():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    till = Till()
    with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}/v1: nobody answers there.*synthesis\.base_url"):
        make(service(f"http://127.0.0.1:{port}/v1"), till=till)
    assert till.count == 0


def reply(first: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps({"data": first}).encode()


def test_an_image_given_by_address_is_not_fetched():
    with Endpoint(drawn(picture())) as other:
        for first in ([{"url": f"{other.url}/x.png"}], [], None, [{"b64_json": None}], [{"b64_json": 7}], "x"):
            with Endpoint(reply(first)) as server, pytest.raises(UserError, match=r"no b64_json; images that .* are not fetched"):
                make(service(server))
        assert not other.asked


@pytest.mark.parametrize("encoded", ["%%%", "aGVsbG8=", "", "A" * 7])
def test_bytes_that_are_no_image_cost_one_image(encoded: str):
    if not encoded:
        encoded = drawn(picture())[2].decode().partition('b64_json": "')[2][:400]  # cut short
    with Endpoint(reply([{"b64_json": encoded}])) as server:
        made = make(service(server))
        assert made.pixels is None and made.fault.startswith("what the service sent cannot be read: ")


def test_a_black_image_is_a_fault_and_a_redirect_and_an_endless_reply_are_refused(monkeypatch: pytest.MonkeyPatch):
    with Endpoint(drawn(np.zeros((64, 64, 3), np.uint8))) as server:
        assert make(service(server)).fault == "black image"
    with Endpoint(drawn(picture())) as other:
        with Endpoint((307, {"Location": f"{other.url}/images/generations"}, b"")) as server, pytest.raises(UserError):
            make(service(server))
        assert not other.asked
    with Endpoint(drawn(picture((200, 200)))) as server:
        asked = service(server)
        asked.client.max_bytes = 50_000
        assert "more than 50,000 bytes" in make(asked).fault


def test_an_endpoint_elsewhere_needs_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UserError, match=r"synthesis\.key_variable=A_KEY: this environment variable is not set"):
        service("https://example.org/v1")
    with pytest.raises(UserError, match=r"synthesis\.base_url='ftp://x': expected an address"):
        service("ftp://x")
