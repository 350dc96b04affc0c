"""Finding and fetching SAM checkpoints: from a real local server, once, with the hash checked; and what is said offline."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from syn4seg.errors import UserError
from syn4seg.models import sam_files
from syn4seg.models.sam_files import PUBLISHED, WEIGHTS, known_sam, published_file

CONTENT = b"the weights" * 1000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way out to the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch):
    """The paths that were asked for; the server has `CONTENT` under ViT-B's name and nothing else."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            found = self.path == "/sam/" + PUBLISHED["vit-b"].file
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            self.wfile.write(CONTENT if found else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(sam_files, "SOURCE", f"http://127.0.0.1:{server.server_port}/sam")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_checkpoint_is_fetched_once(cache: Path, served: list[str], monkeypatch: pytest.MonkeyPatch):
    right = PUBLISHED["vit-b"]._replace(sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(PUBLISHED, "vit-b", right)
    assert published_file("vit-b") == cache / right.file
    assert published_file("vit-b").read_bytes() == CONTENT
    assert served == ["/sam/" + right.file]


def test_a_file_with_another_hash_is_refused_and_does_not_stay(cache: Path, served: list[str]):
    with pytest.raises(UserError, match=r"vit-b.*hash.*put it here as .*sam_vit_b_01ec64\.pth"):
        published_file("vit-b")
    assert served and list(cache.iterdir()) == []


def test_a_missing_page_is_named(cache: Path, served: list[str]):
    with pytest.raises(UserError, match=r"vit-l.*sam_vit_l_0b3195\.pth could not be fetched.*404"):
        published_file("vit-l")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_offline_the_error_says_which_file_to_put_where(cache: Path, name: str):
    with pytest.raises(UserError) as said:
        published_file(name)
    assert f"https://dl.fbaipublicfiles.com/segment_anything/{PUBLISHED[name].file}" in str(said.value)
    assert f"put it here as {cache / PUBLISHED[name].file}" in str(said.value)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / PUBLISHED[name].file).write_bytes(CONTENT)
    assert published_file(name) == cache / PUBLISHED[name].file


def test_known_names_files_and_whole_folders_pass_before_anything_is_opened(tmp_path: Path, cache: Path):
    (tmp_path / "any.pth").write_bytes(b"not looked at")
    for given in ("embedded-sam", *PUBLISHED, tmp_path / "any.pth", str(tmp_path / "any.pth"), WEIGHTS):
        known_sam(given)
    assert not cache.exists()


def test_what_cannot_be_loaded_is_refused_at_once(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.pth").touch()
    wrong = {
        tmp_path: r"has no model\.safetensors",
        tmp_path / "empty.pth": "is empty",
        tmp_path / "x.pth": "no SAM weights at",
        "vit_b": r"no SAM weights at vit_b \(did you mean vit-b\?\)",
    }
    for given, why in wrong.items():
        with pytest.raises(UserError, match=f"{why}.*vit-b, vit-l, vit-h.*config.json and model.safetensors"):
            known_sam(given)


def test_the_check_loads_no_heavy_library():
    code = "import sys; from syn4seg.models.sam_files import known_sam; known_sam('vit-h'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
