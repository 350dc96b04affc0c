"""The served report: loopback alone, nothing but the page and its pictures, and a page that follows the run where it is read."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report import serving
from syn4seg.report.reading import read_records
from syn4seg.report.serving import LivePage, open_server, picture_at
from syn4seg.store.rundir import RunDir


@contextlib.contextmanager
def served(live: LivePage):
    """Answer requests for a page on a free port; yield the port."""
    server = open_server(live, 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(port: int, path: str, method: str = "GET", **headers) -> tuple[int, bytes, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body, answer.getheader("Content-Type") or ""


@pytest.fixture
def begun(tmp_path, small):
    """A run that has only begun: its page costs little."""
    run = RunDir(tmp_path / "begun")
    run.open(load(None, small))
    return run


def tree(root) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_it_answers_on_loopback_alone_and_with_the_page_and_its_pictures_alone(tmp_path):
    root = tmp_path / "run"
    (root / "images/a b").mkdir(parents=True)
    (root / "draws/0/labels/x").mkdir(parents=True)
    for name in ("images/a b/1.png", "draws/0/labels/x/1.PNG", "images/secret.json", "top.png"):
        (root / name).write_bytes(name.encode())
    (tmp_path / "outside.png").write_bytes(b"outside")
    (root / "images/link.png").symlink_to(tmp_path / "outside.png")
    live = LivePage(RunDir(root))
    live.page, live.version = b"<p>page", 7
    assert open_server(live, 0).server_address[0] == "127.0.0.1"
    with served(live) as port:
        assert get(port, "/") == get(port, "/report.html") == (200, b"<p>page", "text/html; charset=utf-8")
        assert get(port, "/version")[:2] == (200, b"7")
        assert get(port, "/images/a%20b/1.png") == (200, b"images/a b/1.png", "image/png")
        assert get(port, "/draws/0/labels/x/1.PNG")[0] == 200
        hidden = ("/images/secret.json", "/top.png", "/images/link.png", "/images", "/images/", "/config.yaml", "/images/%00.png")
        outside = (
            "/images/../../outside.png",
            "/images/%2e%2e/%2e%2e/outside.png",
            "//outside.png",
            "/images/..%2f..%2foutside.png",
        )
        for path in (*hidden, *outside):
            assert get(port, path)[0] == 404, path
        assert get(port, "/", Host="evil.example:80")[0] == get(port, "/version", Host="evil.example")[0] == 403
        assert get(port, "/", method="POST")[0] == 501
    assert picture_at(root, "/images/a b/1.png") == (root / "images/a b/1.png").resolve()


def test_a_page_is_made_again_when_the_run_has_changed_and_only_then_and_the_run_is_left_alone(begun, monkeypatch):
    live = LivePage(begun)
    live.make()
    assert live.version == 1 and b'data-version="1"' in live.page and b"connect-src 'self'" in live.page
    before = tree(begun.root)
    monkeypatch.setattr(serving, "PAUSE", 0.0)
    live.took = 0.0
    assert not live.refresh() and live.version == 1
    begun.log(stage="base", epoch=1, epochs=2, loss=1.0)
    monkeypatch.setattr(serving, "PAUSE", 3600.0)
    assert not live.refresh()  # too soon
    monkeypatch.setattr(serving, "PAUSE", 0.0)
    live.took = 0.0
    assert live.refresh() and live.version == 2 and b'data-version="2"' in live.page
    live.took = 0.0
    assert not live.refresh()
    assert {path: data for path, data in tree(begun.root).items() if not path.endswith("metrics.jsonl")} == before


def test_a_port_that_is_taken_is_named_if_it_was_asked_for_and_else_another_is_taken(begun, monkeypatch):
    live = LivePage(begun)
    with served(live) as port:
        with pytest.raises(UserError, match=f"--port {port}"):
            open_server(live, port)
        monkeypatch.setattr(serving, "PORT", port)
        with open_server(live, None) as other:
            assert other.server_address[1] not in (0, port)


def test_a_run_that_cannot_be_read_for_a_moment_keeps_its_page(begun, monkeypatch):
    live, said = LivePage(begun), []
    live.make()
    page = live.page
    monkeypatch.setattr(serving, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(serving, "PAUSE", 0.0)
    monkeypatch.setattr(serving, "REST", 0.0)
    begun.config.write_text("nothing: 1")

    class Ended(BaseException):
        pass

    def say(text: str) -> None:
        said.append(text)
        raise Ended

    with pytest.raises(Ended):
        serving.serve_live(live, open_server(live, 0), say)
    assert live.page == page and "nothing" in said[0]


def test_ctrl_c_ends_it_with_one_line(begun):
    command = [sys.executable, "-m", "syn4seg.cli", "report", str(begun.root), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        assert get(port, "/")[0] == 200
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and out == "" and errors == "the report is no longer served\n"
    assert not (begun.root / "report.html").exists()


def test_serving_and_a_file_exclude_each_other(begun, syn4seg):
    assert "--serve writes no file" in syn4seg("report", begun.root, "--serve", "--to", begun.root / "x.html")[2]
    assert "add --serve" in syn4seg("report", begun.root, "--port", 80)[2]


def test_a_page_that_loads_itself_again_stays_where_and_how_it_was(chromium, run):
    rows = [row for row in read_records(run, 0).to_pylist() if not row["reason"]]
    live = LivePage(run, 0)
    live.make()
    with served(live) as port, contextlib.closing(chromium.new_context(viewport={"width": 900, "height": 500})) as context:
        page, messages = context.new_page(), []
        page.on("console", lambda m: messages.append(m.text))
        page.on("pageerror", lambda e: messages.append(str(e)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.select_option("#class", rows[0]["class"])
        page.locator("#cards .card").nth(2).scroll_into_view_if_needed()
        top = "document.querySelectorAll('#cards .card')[2].getBoundingClientRect().top"
        place, cards = page.evaluate(top), page.locator("#cards .card").count()
        page.evaluate("history.scrollRestoration = 'manual'")  # Chromium alone would find the place by itself
        record = run.draw(0).record(rows[0]["class"], rows[0]["sample_id"])
        record.write_text(json.dumps(json.loads(record.read_text()) | {"reason": "target_too_small"}))
        run.draw(0).manifest.unlink()
        run.results.unlink()  # the table above goes, so that the same number of pixels is another place
        live.ended -= 3600
        assert live.refresh()
        page.wait_for_selector("html[data-version='2']", state="attached", timeout=10_000)
        assert page.input_value("#class") == rows[0]["class"] and page.locator("#cards .card").count() == cards
        assert abs(page.evaluate(top) - place) < 3
        assert page.locator("#cards .card .bad").count() > 0
        page.locator("#cards .card").first.click()
        page.wait_for_timeout(300)
        assert page.locator("#panes .photo").first.evaluate("node => node.tagName") == "IMG"  # the full picture
        page.evaluate("window.untouched = true")
        live.version += 1
        page.wait_for_timeout(2500)
        assert page.evaluate(
            "window.untouched && document.getElementById('detail').open"
        )  # nobody's sample is closed under their eyes
        assert messages == []
