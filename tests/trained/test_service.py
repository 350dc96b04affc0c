"""The HTTP of a served model without Ray: what it takes, what it refuses with one sentence, and what stands in every answer."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from syn4seg.segmenter.model_folder import read_config
from syn4seg.trained import service
from syn4seg.trained.prediction import Seen, encode_mask
from syn4seg.trained.service import PAGE, PAGE_FILES, build_app

LIMIT = 50_000


def encode(pixels, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a hundred bytes that claims side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def config(finished):
    return read_config(finished[0] / "model")


@pytest.fixture
def client(config):
    """A client of an application whose network sees class 1 where a picture is bright; it fails on a black one."""
    testclient = pytest.importorskip("starlette.testclient", reason="starlette is missing: pip install -e .[serve]")

    async def segment(image, options):
        if not image.any():
            raise ValueError("secret")
        return Seen((image[..., 0] > 127).astype(np.uint8), np.full(image.shape[:2], 0.5, np.float32))

    return testclient.TestClient(build_app(config, segment, lambda: {"images": 3}, LIMIT), raise_server_exceptions=False)


def test_a_picture_becomes_an_index_png_or_json(client, config):
    image, expected = NOISE[:20, :30], (NOISE[:20, :30, 0] > 127).astype(np.uint8)
    answer = client.post("/predict", content=encode(image))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png" and answer.content == encode_mask(expected)
    palette = Image.open(io.BytesIO(client.post("/predict?palette=1", content=encode(image)).content))
    assert palette.mode == "P" and np.array_equal(np.array(palette), expected)
    for found in (
        client.post("/predict?format=json", content=encode(image)).json(),
        client.post("/predict", content=encode(image), headers={"Accept": "application/json"}).json(),
    ):
        assert (found["height"], found["width"], found["confidence"]) == (20, 30, 0.5)
        assert found["classes"][config.classes[1].name]["pixels"] == expected.sum()
        assert base64.b64decode(found["mask"]) == encode_mask(expected)


def test_a_photo_is_turned_upright(client):
    exif = Image.Exif()
    exif[0x112] = 6
    answer = client.post("/predict", content=encode(NOISE[:20, :30], "PNG", exif=exif))
    assert np.array_equal(np.array(Image.open(io.BytesIO(answer.content))), np.rot90(NOISE[:20, :30, 0] > 127, -1))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/predict", b"", 400, "the body is empty"),
        ("POST", "/predict", b"hello, world\n" * 9, 422, "not a readable image (cannot identify image file); expected JPEG"),
        ("POST", "/predict", encode(NOISE)[:-4000], 422, "cannot be decoded"),
        ("POST", "/predict", bomb(9_000), 422, "has 81000000 pixels"),
        ("POST", "/predict", bomb(60_000), 422, "exceeds limit"),
        ("POST", "/predict", bytes(LIMIT + 1), 413, "expected at most 50,000 bytes"),
        ("POST", "/predict", iter([bytes(30_000)] * 2), 413, "expected at most 50,000 bytes"),
        ("POST", "/predict?format=tiff", encode(NOISE), 400, "expected png or json"),
        ("POST", "/predict?tile=1", encode(NOISE), 400, "tile=1: expected"),
        ("POST", "/predict?tile=16", encode(np.zeros((4, 9999), np.uint8) + 9), 200, ""),
        ("POST", "/predict?tile=16", encode(np.zeros((999, 999), np.uint8) + 9), 422, "expected at most 1024"),
        ("POST", "/predict?titel=512", encode(NOISE), 400, "titel: unknown"),
        ("POST", "/predict", encode(NOISE * 0), 500, "a fault of the server (ValueError)"),
        ("GET", "/predict", None, 405, "POST /predict with a picture's bytes"),
        ("GET", "/../../etc/passwd", None, 404, "there is nothing here"),
        ("POST", "/", b"", 405, "there is nothing here"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_what_is_refused_is_one_sentence_that_says_what_was_expected(client, method, path, body, status, said):
    answer = client.request(method, path, content=body)
    assert answer.status_code == status
    if status != 200:
        (sentence,) = json.loads(answer.content).values()
        assert said in sentence and "\n" not in sentence and len(sentence) < 300
        assert not any(inside in sentence for inside in ("Traceback", "secret", ".py", "object at 0x"))


def test_a_form_is_refused_with_what_to_send_instead(client):
    answer = client.post("/predict", files={"image": encode(NOISE)})
    assert answer.status_code == 415 and "send the bytes of a picture as they are" in answer.json()["error"]


def test_an_upload_that_never_ends_is_cut_off(client, monkeypatch):
    import anyio

    monkeypatch.setattr(service, "BODY_SECONDS", 0.05)

    class Slow:
        def __init__(self):
            self.headers = {}

        async def stream(self):
            yield b"x"
            await anyio.sleep(30)

    with ThreadPoolExecutor(1) as other, pytest.raises(service.RequestError, match="did not arrive whole") as caught:
        other.submit(anyio.run, service.read_body, Slow(), LIMIT).result()  # a browser's loop may be running in this thread
    assert caught.value.status == 408


def test_the_model_is_described_without_a_path_and_every_answer_closes_the_page_in(client, config):
    found = client.get("/model").json()
    assert [(c["name"], c["kind"]) for c in found["classes"]] == [(c.name, c.kind) for c in config.classes]
    assert found["max_bytes"] == LIMIT and found["provenance"]["shots"] == 1
    assert client.get("/healthz").json() == {"status": "ok", "images": 3}
    answers = [client.get(path) for path in (*PAGE_FILES, "/model", "/none")] + [client.post("/predict", content=encode(NOISE))]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in answer.headers


def test_the_page_has_no_script_or_style_that_its_own_policy_would_stop():
    html = (PAGE / "index.html").read_text()
    assert "http" not in html and "style=" not in html and " on" not in html.replace(" one", "")
    assert html.count("<script") == html.count('<script src="page.js"') == 1 and "<style" not in html
    assert not any(
        word in (PAGE / "page.js").read_text() for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "http:", "https:")
    )
