"""A trained segmenter over HTTP, as an ASGI application: what it takes, what it answers, and its page. Free of Ray.

    GET /          the page          GET /model     classes, limits and provenance as JSON
    GET /healthz   is it up, counts  POST /predict  a picture's bytes in; an index PNG or JSON out (`AnswerForm`)

Whatever is refused is answered with {"error": one sentence}, in which nothing of the server stands.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.data.photos import decode_bytes
from syn4seg.errors import UserError
from syn4seg.trained.pixels import starts
from syn4seg.trained.prediction import PredictionOptions, Seen, describe, encode_mask

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from syn4seg.segmenter.model_folder import ModelConfig

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
"""Path -> file of the page and its media type."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer: the page runs its own script alone, talks to this server alone, and is shown in no other page."""
BODY_SECONDS = 60.0
"""How long an upload may take."""
MAX_TILES = 1024
"""Tiles of one picture; of more, one request would hold the network for minutes."""
BOOLEANS = {"0": False, "1": True}
EXPECTED = "GET / (the page), GET /model, GET /healthz, or POST /predict with a picture's bytes"
REMEDY = "send the bytes of a picture as they are"
Segment = Callable[[np.ndarray, PredictionOptions], Awaitable[Seen]]
"""Takes an image uint8 (H, W, 3) and how it is seen; returns what the network says of it."""
Count = Callable[[], Mapping[str, int]]
"""Returns figures of the process, by name."""
_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class AnswerForm:
    """What `POST /predict` answers with, by its query; without one an 8-bit grey PNG, as `syn4seg predict` writes it.

    Attributes:
        json: `format=json`, or `Accept: application/json`: size, mean confidence, pixels, share and confidence of every class, and
            the PNG in base64.
        palette: `palette=1`: the PNG shows the colours of the classes.
        tile: `tile=512`: a larger image is seen in tiles of this side, as with `syn4seg predict --tile 512`.
    """

    json: bool = False
    palette: bool = False
    tile: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str], accept: str) -> AnswerForm:
        """Read it from a query and the header `Accept`.

        Raises:
            RequestError: the query has a key or value that means nothing.
        """
        if unknown := sorted(set(query) - {"format", "palette", "tile"}):
            raise RequestError(400, f"{unknown[0][:40]}: unknown; the query takes format=png|json, palette=0|1 and tile=PIXELS")
        format = query.get("format", "json" if "application/json" in accept and "image/png" not in accept else "png")
        if format not in ("png", "json"):
            raise RequestError(400, f"format={format[:40]}: expected png or json")
        palette, tile = query.get("palette", "0"), query.get("tile")
        if palette not in BOOLEANS:
            raise RequestError(400, f"palette={palette[:40]}: expected 0 or 1")
        if tile is not None and not (tile.isascii() and tile.isdecimal() and len(tile) < 6 and int(tile) >= 16):
            raise RequestError(400, f"tile={tile[:40]}: expected the side of a tile in pixels, 16 to 99999")
        return cls(format == "json", BOOLEANS[palette], None if tile is None else int(tile))


def build_app(config: ModelConfig, segment: Segment, count: Count, max_bytes: int) -> Starlette:
    """Return the ASGI application of a model.

    Args:
        segment: asks the network; an exception of it is answered with status 500 and written to the log.
        count: what `GET /healthz` says beside `status`.
        max_bytes: of an upload.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    about = describe_model(config, max_bytes)
    palette = np.array([entry.color for entry in config.classes], np.uint8)

    async def page(request: Request) -> Response:
        name, kind = PAGE_FILES[request.url.path.removeprefix(request.scope.get("root_path", "")) or "/"]
        return _answer((PAGE / name).read_bytes(), f"{kind}; charset=utf-8")

    async def model(request: Request) -> Response:
        return _answer(_to_json(about), "application/json")

    async def healthz(request: Request) -> Response:
        return _answer(_to_json({"status": "ok", **count()}), "application/json")

    async def predict(request: Request) -> Response:
        form = AnswerForm.of(request.query_params, request.headers.get("accept", ""))
        image = await asyncio.to_thread(decode_upload, await read_body(request, max_bytes), form.tile)
        try:
            seen = await segment(image, PredictionOptions(tile=form.tile))
            found = await asyncio.to_thread(encode_answer, seen, [entry.name for entry in config.classes], palette, form)
        except Exception as error:
            _log.exception("a request failed")
            raise RequestError(500, f"a fault of the server ({type(error).__name__}), whose log says more") from error
        return _answer(found, "application/json" if form.json else "image/png")

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return _answer(_to_json({"error": str(error)}), "application/json", error.status)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method[:10]} {request.url.path[:60]}"
        said = f"{what}: there is nothing here; expected {EXPECTED}"
        answer = _answer(_to_json({"error": said}), "application/json", error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    routes = [Route(path, page) for path in PAGE_FILES]
    routes += [Route("/model", model), Route("/healthz", healthz), Route("/predict", predict, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={RequestError: refuse, HTTPException: refuse_route})


def describe_model(config: ModelConfig, max_bytes: int) -> dict[str, Any]:
    """Return what `GET /model` says: name, classes by index, limits, provenance."""
    return {
        "name": config.provenance.get("run", "model"),
        "classes": [
            {"index": k, "name": entry.name, "kind": entry.kind, "color": entry.color} for k, entry in enumerate(config.classes)
        ],
        "canvas": config.canvas.size,
        "max_bytes": max_bytes,
        "provenance": config.provenance,
    }


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request; of one that is too large no more is read than the bound.

    Raises:
        RequestError: it is empty, too large, a form, or does not arrive whole in time.
    """
    from starlette.requests import ClientDisconnect

    if request.headers.get("content-type", "").startswith("multipart/"):
        raise RequestError(415, f"the body is a form; {REMEDY}")
    length, data = request.headers.get("content-length", ""), bytearray()
    too_large = RequestError(413, f"the upload is too large; expected at most {max_bytes:,} bytes")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
    except (TimeoutError, ClientDisconnect):
        raise RequestError(408, f"the upload did not arrive whole within {BODY_SECONDS:g} s; send it again") from None
    if not data:
        raise RequestError(400, f"the body is empty; {REMEDY}")
    return bytes(data)


def decode_upload(data: bytes, tile: int | None = None) -> np.ndarray:
    """Return the image uint8 (H, W, 3) of an upload, decoded as `syn4seg predict` does.

    Raises:
        RequestError: it is no picture or too many pixels, or would be seen in too many tiles.
    """
    try:
        image = decode_bytes(data, "the upload", REMEDY)
    except UserError as error:
        raise RequestError(422, str(error)) from None
    if tile is not None:
        tiles = int(np.prod([len(starts(side, tile, PredictionOptions.overlap)) for side in image.shape[:2]]))
        if tiles > MAX_TILES:
            raise RequestError(422, f"tile={tile}: the image would be seen in {tiles} tiles; expected at most {MAX_TILES}")
    return image


def encode_answer(seen: Seen, names: list[str], palette: np.ndarray, form: AnswerForm) -> bytes:
    """Return the body of an answer.

    Args:
        names: by class index.
        palette: RGB uint8 (C, 3).
    """
    mask = encode_mask(seen.label, palette if form.palette else None)
    if not form.json:
        return mask
    size = {"height": seen.label.shape[0], "width": seen.label.shape[1]}
    return _to_json(size | describe(seen, tuple(names)) | {"mask": base64.b64encode(mask).decode()})


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _answer(body: bytes, media_type: str, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(body, status, HEADERS, media_type)
