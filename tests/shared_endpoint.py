"""A server on this machine that stands for an OpenAI-compatible endpoint, and answers as badly as servers do."""

from __future__ import annotations

import base64
import http.server
import io
import json
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

KEY = "sk-this-must-never-be-seen"


def failed(status: int, error: Any = "no", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """An error as OpenAI words it."""
    inside = error if isinstance(error, dict) else {"message": error}
    return status, {"Content-Type": "application/json"} | headers, json.dumps({"error": inside}).encode()


LATE = (0, {}, b"")  # no answer before the client's patience ends
PATIENCE, SHORT = 60.0, 0.3
"""Seconds that an agent waits for a reply: for one that comes, as long as a busy machine may need; for one that does not, this."""


class Endpoint:
    """A server that gives its answers in turn, the last one for ever, and remembers what it was asked."""

    def __init__(self, *answers: Any):
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        this = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # a connection ends with its answer, so that a stopped server is gone

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                this.asked.append(body)
                this.headers.append({k.lower(): v for k, v in self.headers.items()} | {"path": self.path})
                answer: Any = this.answers.pop(0) if len(this.answers) > 1 else this.answers[0]
                given: Any = answer(body) if callable(answer) else answer
                status, headers, content = given
                if not status:
                    time.sleep(2 * SHORT)
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Endpoint:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def question(self, number: int) -> str:
        """The last message of a question to a chat model."""
        return self.asked[number]["messages"][-1]["content"]


def picture(size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """An image uint8 (H, W, 3) of noise, the same for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def drawn(pixels: np.ndarray, **beside: Any) -> tuple[int, dict[str, str], bytes]:
    """A reply of an images endpoint with one image as PNG in base64, and what else is said of it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    body = {"created": 0, "data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()} | beside]}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
