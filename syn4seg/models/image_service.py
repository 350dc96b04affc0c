"""Images from an OpenAI-compatible images endpoint: one request for one image, in base64, never by address.

A service promises no bytes: the same prompt and seed may give another image tomorrow. The seed goes along as long as the service
takes one. What concerns one prompt costs that image; what concerns all of them (key, model, credit, size) ends the run.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np

from syn4seg.data.photos import decode_bytes
from syn4seg.errors import UserError
from syn4seg.models.endpoint import TRIES, Answer, EndpointClient, endpoint, pause
from syn4seg.models.images import image_fault

MAX_REPLY = 150_000_000  # bytes of a reply: an image of 4096 x 4096 pixels in base64
SILENT_IMAGES = 3  # images in a row without a reply after which the service counts as dead
POLICY_CODES = ("content_policy_violation", "moderation_blocked", "content_filter", "contentfilter")
POLICY_WORDS = re.compile(r"content[ _]?(policy|filter|management)|safety|moderation", re.IGNORECASE)
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")
MAYBE_MADE = (502, 504)
"""Status of a gateway that lost its patience: the service behind it may have made the image."""
OPTIONAL = ("seed", "response_format")
"""Parts of a request that some services do not know: what they refuse by name is left out from then on."""


class MayNotAsk(Exception):
    """Raised by the callback of `ImageService.make` where no further request is allowed; it says why in one line."""


class ServiceImage(NamedTuple):
    """What became of one image.

    Attributes:
        pixels: uint8 (size, size, 3) RGB, or None.
        fault: why there is none, or "".
        audit: plain JSON values: the seed that was sent (None if the service takes none), and the prompt that the service made of
            ours, if it says so.
    """

    pixels: np.ndarray | None
    fault: str
    audit: dict[str, Any]


class ImageService:
    """Asks for images, one after the other."""

    def __init__(
        self,
        model: str,
        *,
        size: int,
        request_size: str | None = None,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 180.0,
        first_wait: float = 2.0,
    ):
        """Take the settings; nothing is sent yet.

        Args:
            model: its name at the endpoint.
            size: side of an image in pixels, to which what the service sends is brought.
            request_size: in the service's words; None for "SIZExSIZE".
            timeout: seconds for a whole reply.
            first_wait: seconds before the second try; doubled for every further one.

        Raises:
            UserError: as `endpoint.endpoint`.
        """
        self.model, self.size, self.request_size = model, size, request_size or f"{size}x{size}"
        self.key_variable, self.first_wait = key_variable, first_wait
        place = endpoint(base_url, key_variable, "synthesis")
        self.client = EndpointClient(place, section="synthesis", user="synthesis.source=api", timeout=timeout, max_bytes=MAX_REPLY)
        self.left_out: set[str] = set()
        self.silent = 0

    def facts(self) -> dict[str, Any]:
        """Return what makes the images, as plain JSON values: model, host, sizes, and that nobody can make them again."""
        host = urlsplit(self.client.place.address).hostname
        facts = {"model": self.model, "service": host, "size": self.size, "request_size": self.request_size}
        return facts | {"reproducible": False}

    def make(self, prompt: str, noise_seed: int, before: Callable[[], None], undo: Callable[[], None]) -> ServiceImage:
        """Return one image, asked for up to `TRIES` times.

        Args:
            noise_seed: the service is sent its remainder by 2^31.
            before: called before each request; raises `MayNotAsk` where none is allowed.
            undo: called after a request that surely made no image: its answer is an error, or there was no connection.

        Raises:
            UserError: what would concern every other image as well, or `SILENT_IMAGES` images in a row without a reply.
        """
        seed, answer = noise_seed % 2**31, Answer()
        for attempt in range(TRIES):
            try:
                answer = self._ask(prompt, seed, before, undo)
            except MayNotAsk as error:
                why = f"{answer.problem}; " if answer.problem else ""
                return ServiceImage(None, f"{why}{error}", {})
            if not answer.problem:
                self.client.has_answered, self.silent = True, 0
                return self._received(answer.reply, seed)
            if not answer.again:
                self.silent = 0
                return ServiceImage(None, self._refusal(prompt, answer), {})
            if attempt < TRIES - 1:
                pause(answer, attempt, self.first_wait)
        self.silent += 1
        if self.silent == SILENT_IMAGES:
            raise UserError(
                f"{self.client.where} has not answered for {SILENT_IMAGES} images of {TRIES} tries ({answer.problem}); run the "
                "same command again later, which goes on from here (images that were given up have notes in quarantined/: delete "
                "those to have them asked for again), or raise synthesis.timeout"
            )
        return ServiceImage(None, f"no image after {TRIES} tries: {answer.problem}", {})

    def _ask(self, prompt: str, seed: int, before: Callable[[], None], undo: Callable[[], None]) -> Answer:
        """Return one request, without what the service refuses by name; its reply is base64 text and the revised prompt or ""."""
        optional: dict[str, Any] = {"seed": seed, "response_format": "b64_json"}
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "n": 1, "size": self.request_size}
        body |= {name: value for name, value in optional.items() if name not in self.left_out}
        before()
        answer = self.client.ask(lambda client: _content(client.images.generate(**_arguments(body))))
        if answer.unsent or (answer.status and answer.status not in MAYBE_MADE):
            undo()
        if answer.status in (400, 422) and not self._is_policy(prompt, answer):
            said = answer.problem.replace(prompt, "")
            named = [name for name in OPTIONAL if name in body and re.search(rf"\b{name}\b", said)]
            if named:
                self.left_out |= set(named)
                return self._ask(prompt, seed, before, undo)
        return answer

    def _is_policy(self, prompt: str, answer: Answer) -> bool:
        return answer.code.lower() in POLICY_CODES or bool(POLICY_WORDS.search(answer.problem.replace(prompt, "")))

    def _refusal(self, prompt: str, answer: Answer) -> str:
        """Return why the service makes no image of one prompt.

        Raises:
            UserError: it would make none of others either.
        """
        credit = answer.code in NO_CREDIT
        if not answer.status:
            raise UserError(answer.problem)
        if answer.status in (400, 403, 422, 451) and not credit and self._is_policy(prompt, answer):
            return f"the service refuses the prompt: {answer.problem}"
        if answer.status in (400, 413, 422) and not credit and self.client.has_answered:  # others were well
            return f"the service refuses the request: {answer.problem}"
        raise UserError(f"{self.client.where} refuses the request ({answer.problem}); {self._remedy(answer.status, credit)}")

    def _remedy(self, status: int, credit: bool) -> str:
        if credit or status == 429:
            return "the account has no credit left; images that are there already are kept, and the same command goes on from here"
        if status in (401, 403):
            return f"set the environment variable {self.key_variable} to a key that may use {self.model}"
        if status == 404:
            return f"check synthesis.model={self.model} and synthesis.base_url, which most often ends in /v1"
        return (
            f"check synthesis.model={self.model} and synthesis.request_size={self.request_size}, which is to be a size that the "
            "model makes"
        )

    def _received(self, reply: tuple[str, str], seed: int) -> ServiceImage:
        """Return the image of a reply.

        Raises:
            UserError: the reply has no image in it, so others will have none either.
        """
        encoded, revised = reply
        audit: dict[str, Any] = {"seed": None if "seed" in self.left_out else seed}
        audit |= {"revised_prompt": self.client.hidden(revised)[:2000]} if revised else {}
        if not encoded:
            raise UserError(
                f"{self.client.where}: the reply has no b64_json; images that a service gives by address are not fetched: "
                "choose one that sends base64, or check synthesis.base_url, which most often ends in /v1"
            )
        try:
            pixels = decode_bytes(base64.b64decode("".join(encoded.split()), validate=True), "the image of the service")
        except (binascii.Error, ValueError, UserError) as error:
            return ServiceImage(None, f"what the service sent cannot be read: {self.client.redact(str(error))}", audit)
        pixels = to_square(pixels, self.size)
        fault = image_fault(pixels)
        return ServiceImage(pixels, f"{fault} image" if fault else "", audit)


def to_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of an image uint8 (H, W, 3) at uint8 (size, size, 3): by area where it shrinks, else cubic."""
    rows, columns = pixels.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def _arguments(body: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of openai's call: it has no argument for a seed."""
    known = {name: value for name, value in body.items() if name != "seed"}
    return known | ({"extra_body": {"seed": body["seed"]}} if "seed" in body else {})


def _content(reply: Any) -> tuple[str, str]:
    """Return the base64 text of a reply and the prompt that it was made of; "" for what it does not have."""
    data = getattr(reply, "data", None)
    first = data[0] if isinstance(data, list) and data else None
    encoded, revised = (getattr(first, name, None) for name in ("b64_json", "revised_prompt"))
    return encoded if isinstance(encoded, str) else "", revised if isinstance(revised, str) else ""
