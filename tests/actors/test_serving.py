"""`syn4seg serve`: one server for all tests here. The masks of `predict`, whoever else asks; its page in a real browser."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from actors import serving
from actors.serving import is_loopback, read_options
from syn4seg.errors import UserError
from syn4seg.segmenter.model_folder import read_config

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("fastapi"), reason="Ray Serve is missing: pip install -e .[serve]")
LIMIT = 200_000


class Server:
    """A running `syn4seg serve`: its process, port and lines."""

    def __init__(self, model):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [sys.executable, "-m", "syn4seg.cli", "serve", str(model), "--port", str(self.port), "--max-bytes", str(LIMIT)]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean)
        self.lines = []
        while not any("Ctrl-C" in line for line in self.lines):
            self.lines.append(self.process.stdout.readline())
            assert self.lines[-1], self.lines
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def ask(self, method, path, body=None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def mask(self, data, query="") -> bytes:
        status, body = self.ask("POST", f"/predict{query}", data)
        assert status == 200, body
        return body


@pytest.fixture(scope="module")
def server(finished):
    it = Server(finished[0])
    yield it
    if it.process.poll() is None:
        it.process.send_signal(signal.SIGINT)
        it.process.wait(60)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 6 images of many sizes and formats, one of them turned by EXIF."""
    from syn4seg.data.datasets import EmbeddedDataset

    root, dataset, exif = tmp_path_factory.mktemp("photos"), EmbeddedDataset(1, 10), Image.Exif()
    exif[0x112] = 6
    for i, (name, suffix) in enumerate(zip(dataset.val, ("jpg", "png", "tiff", "webp", "bmp", "jpg"), strict=False)):
        picture = Image.fromarray(dataset.image(name)).resize((60 + 40 * i, 96))
        picture.save(root / f"{i}.{suffix}", **({"exif": exif} if i == 5 else {}))
    return root


@pytest.mark.slow
def test_masks_have_the_bytes_that_predict_writes(server, finished, photos, syn4seg, tmp_path):
    for query, words in (("?", []), ("?palette=1", ["--palette"]), ("?tile=64", ["--tile", 64])):
        to = tmp_path / query[1:4]
        assert syn4seg("predict", finished[0], photos, "--to", to, "--no-overlays", *words)[0] == 0
        for photo in photos.iterdir():
            expected = (to / "masks" / f"{photo.stem}.png").read_bytes()
            assert server.mask(photo.read_bytes(), query) == expected, (query, photo)
            found = json.loads(server.mask(photo.read_bytes(), f"{query}&format=json"))
            assert base64.b64decode(found["mask"]) == expected
    lines = [json.loads(line) for line in (tmp_path / "til" / "predictions.jsonl").read_text().splitlines()]
    turned = next(line for line in lines if line["name"] == "5")
    found = json.loads(server.mask((photos / "5.jpg").read_bytes(), "?tile=64&format=json"))
    assert all(found[key] == turned[key] for key in ("height", "width", "confidence", "classes"))
    assert found["height"] > found["width"]


@pytest.mark.slow
def test_requests_share_batches_and_each_gets_what_it_gets_alone(server, photos):
    def health():
        return json.loads(server.ask("GET", "/healthz")[1])

    pictures = [photo.read_bytes() for photo in photos.iterdir()]
    alone, before = [server.mask(data) for data in pictures], health()
    broken = pictures[0][:300]
    with ThreadPoolExecutor(14) as pool:
        found = list(pool.map(lambda data: server.ask("POST", "/predict", data), [*pictures, broken] * 4))
    after = health()
    for i, answer in enumerate(found):
        status, body = answer
        if i % 7 == 6:
            assert status == 422 and "error" in json.loads(body)
        else:
            assert status == 200 and body == alone[i % 7]
    assert after["images"] - before["images"] == 24 and after["batches"] - before["batches"] < 24


@pytest.mark.slow
def test_an_upload_beyond_the_bound_is_refused_also_when_it_does_not_say_its_size(server):
    for body in (bytes(3 * LIMIT), iter([bytes(LIMIT // 2)] * 5)):
        status, answer = server.ask("POST", "/predict", body)
        assert status == 413 and "expected at most 200,000 bytes" in json.loads(answer)["error"]
    assert server.ask("GET", "/nothing")[0] == 404


@pytest.mark.slow
def test_no_process_of_it_listens_beyond_this_machine(server):
    ours = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    listening = {(p.name(), c.laddr.ip) for p in ours for c in p.net_connections("inet") if c.status == "LISTEN"}
    assert any("ServeRepli" in name for name, _ in listening) and any("Proxy" in name for name, _ in listening)
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


DROP = """([data, name, kind]) => {
  const box = new DataTransfer();
  box.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
  const paste = kind === "paste";
  document.dispatchEvent(paste ? new ClipboardEvent(kind, { clipboardData: box }) : new DragEvent(kind, { dataTransfer: box }));
}"""
READ = """() => {
  const canvas = document.getElementById("mask");
  return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def painted(page, selector) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


@pytest.mark.slow
def test_the_page_segments_a_picture_and_says_what_is_wrong_with_another(server, photos, chromium, finished, tmp_path):
    classes = read_config(finished[0] / "model").classes
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("#others li")
    names, marks = (page.locator(f"#others li > span:nth-child({n})").all_text_contents() for n in (2, 3))
    assert dict(zip(names, marks, strict=True)) == {c.name: "rest" if c.kind == "background" else c.kind for c in classes}

    def counts():
        return json.loads(server.mask(picture.read_bytes(), "?format=json"))["classes"]

    picture = photos / "1.png"
    page.set_input_files("#file", picture)
    page.wait_for_selector("#result:not([hidden])")
    buttons = page.locator("#legend button")
    expected = sorted(counts().items(), key=lambda item: -item[1]["share"])
    assert buttons.locator(".name").all_text_contents() == [name for name, _ in expected] and len(expected) > 1
    kinds = {c.name: c.kind for c in classes}
    assert buttons.locator(".kind").all_text_contents() == [kinds[n] if n != "background" else "rest" for n, _ in expected]

    def set_opacity(value):
        page.evaluate(f"const o = document.getElementById('opacity'); o.value = {value}; o.dispatchEvent(new Event('input'))")

    mask = np.array(Image.open(io.BytesIO(server.mask(picture.read_bytes()))))
    set_opacity(1)
    for name, facts in expected:
        if name != "background" and facts["share"] > 0.02:
            color = next(c.color for c in classes if c.name == name)
            share = (np.abs(painted(page, "#view") - color).max(-1) <= 3).mean()
            assert abs(share - facts["share"]) < 0.03, name
    shown = painted(page, "#view")
    set_opacity(0)
    plain = painted(page, "#view")
    assert np.abs(shown - plain).max() > 60
    set_opacity(1)

    chosen = next(i for i, (name, _) in enumerate(expected) if name != "background")
    buttons.nth(chosen).focus()
    page.keyboard.press("Enter")
    assert buttons.nth(chosen).get_attribute("aria-pressed") == "true"
    index = next(i for i, c in enumerate(classes) if c.name == expected[chosen][0])
    drawn = page.evaluate(READ)
    drawn = np.array(drawn, np.uint8).reshape(*mask.shape, 4)
    whole, color = (drawn[..., 3] > 0) & (drawn[..., :3] != 255).any(-1), classes[index].color
    assert whole.any() and (mask[whole] == index).all() and (drawn[whole][:, :3] == color).all()
    page.keyboard.press("Escape")
    assert buttons.nth(chosen).get_attribute("aria-pressed") == "false"

    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "mask.png")
    assert waiting.value.suggested_filename == "1_mask.png"
    assert (tmp_path / "mask.png").read_bytes() == server.mask(picture.read_bytes())

    def drop(data, name, event="drop"):
        page.evaluate(DROP, [base64.b64encode(data).decode(), name, event])

    assert said == []
    drop(b"<b>no picture</b>", "<img src=x onerror=alert(1)>.txt")
    page.wait_for_selector("#error:not([hidden])")
    assert "not a readable image" in page.text_content("#error") and page.is_hidden("#result")
    assert all("422" in line for line in said)  # the browser's own note of the answer
    said.clear()
    drop(bytes(2 * LIMIT), "large.png")
    page.wait_for_selector("#error:has-text('expected at most 0.200 MB')")
    drop((photos / "3.webp").read_bytes(), "3.webp", "paste")
    page.wait_for_selector("#result:not([hidden])")
    assert page.is_hidden("#error") and "180 x 96 pixels" in page.text_content("#status")
    drop((photos / "5.jpg").read_bytes(), "5.jpg")
    page.wait_for_selector("#status:has-text('96 x 260 pixels')")  # upright, and so is what the browser shows
    assert page.is_visible("#photo")
    drop((photos / "2.tiff").read_bytes(), "2.tiff")
    page.wait_for_selector("#status:has-text('140 x 96 pixels')")
    assert page.is_visible("#unseen") and page.is_hidden("#photo")
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert said == [] and all(url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:")) for url in asked)
    context.close()


@pytest.mark.slow
def test_ctrl_c_ends_it_and_all_its_processes(server):
    """The last one: it ends the server."""
    ours = psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(p.is_running() for p in ours):
        time.sleep(0.2)
    assert not [p for p in ours if p.is_running()]
    assert not re.search("Traceback|[Ee]rror", "".join(server.lines))


# ------------------------------------------------------------------------------------------------------ without a server
def test_mistakes_are_one_sentence_before_anything_starts(finished, syn4seg, tmp_path, monkeypatch):
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    for words, said in (
        ([finished[0], "--port", port], f"--port {port}: cannot listen there"),
        ([finished[0], "--host", "nowhere.invalid"], "--host nowhere.invalid"),
        ([finished[0], "--max-bytes", "much"], "max_bytes=much"),
        ([finished[0], "--batch", 0], "batch=0"),
        ([finished[0], "--device", "tpu"], "device=tpu"),
        ([tmp_path], "not a model"),
    ):
        code, _, errors = syn4seg("serve", *words)
        assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    taken.close()
    monkeypatch.setattr(serving, "NEEDED", ("starlette_is_missing",))
    code, _, errors = syn4seg("serve", finished[0])
    assert code == 2 and "pip install 'syn4seg-ray[serve]'" in errors


def test_a_host_is_known_as_this_machine_or_as_open():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.3", "example.invalid")))


def test_replicas_that_do_not_fit_are_refused(monkeypatch):
    def fit(nodes, gpus=None, **values):
        monkeypatch.setattr(serving, "node_resources", lambda: nodes)
        return serving._fitting_gpus(read_options({"model": "m", **values}), gpus)

    assert fit([{"CPU": 4}]) == 0 and fit([{"CPU": 4, "GPU": 1}]) == 0.5 and fit([{"CPU": 4, "GPU": 1}], device="cpu") == 0
    assert fit([{"CPU": 4, "GPU": 1}], replicas=2) == 0.5 and fit([{"CPU": 4, "GPU": 1}], 0.3, replicas=3) == 0.3
    one, two = {"CPU": 9, "GPU": 1}, {"CPU": 9, "GPU": 2}
    for nodes, gpus, count in (([{"CPU": 4}], None, 5), ([one], None, 3), ([{"CPU": 4}], 0.5, 1), ([two], 0.6, 3)):
        with pytest.raises(UserError, match=f"--replicas {count}"):
            fit(nodes, gpus, replicas=count)


def test_arguments_of_a_serve_config_may_be_text_and_unknown_ones_are_named():
    found = read_options({"model": "m", "gpus": "0.5", "batch": "4", "max_bytes": "2MB", "trust": "true"})
    assert (found.gpus, found.batch, found.max_bytes, found.trust) == (0.5, 4, 2_000_000, True)
    with pytest.raises(UserError, match="modle"):
        read_options({"modle": "m", "model": "m"})
    with pytest.raises(UserError, match="model: Field required"):
        read_options({})


def test_the_page_travels_with_the_package():
    import tomllib

    data = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "trained/page/*" in data["syn4seg"]
