"""The page of predictions: every picture once, texts that stay texts, files of bounded size, and filters in a real browser."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from syn4seg.report.html import escape_invisible
from syn4seg.segmenter.model_folder import find_model, own_config
from syn4seg.trained.browse import MOST, page_name, write_pages

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e{{ 7*7 }}"


@pytest.fixture(scope="module")
def config(finished):
    return own_config(find_model(finished[0]))


def line(number: int, classes: dict[str, float], confidence: float = 0.5, **changes) -> dict:
    found = {name: {"pixels": 1, "share": share, "confidence": confidence} for name, share in classes.items()}
    files = {"mask": f"masks/{number}.png", "overlay": f"overlays/{number}.jpg"}
    facts = {"name": str(number), "image": f"in/{number}.jpg", "height": 40, "width": 60, **files, "confidence": confidence}
    return facts | {"classes": found} | changes


def facts_of(path) -> dict:
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', path.read_text("utf-8"), re.S)[1])


def test_names_and_errors_stay_texts_and_nothing_is_asked_of_other_places(config, tmp_path):
    lines = [line(0, {"background": 1.0}, name=HOSTILE, image=HOSTILE), {"name": HOSTILE, "image": HOSTILE, "error": HOSTILE}]
    write_pages(tmp_path, lines, config)
    html = (tmp_path / "index.html").read_text("utf-8")
    assert (
        html.count("<script") == 2 and "<img" not in html and "\u202e" not in html and "http" not in html.replace("http-equiv", "")
    )
    items = facts_of(tmp_path / "index.html")["items"]
    assert items[0]["name"] == items[1]["error"] == escape_invisible(HOSTILE) and "1 more could not be read" in html


def test_many_predictions_are_several_files_of_bounded_size_and_each_is_on_one_of_them(config, tmp_path):
    names = [entry.name for entry in config.classes]
    lines = [line(i, {names[0]: 0.5, names[1 + i % 3]: 0.5}) for i in range(2 * MOST + 1)]
    write_pages(tmp_path, lines, config)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(page_name(number) for number in (1, 2, 3))
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 2**20
    shown = [item["name"] for number in (1, 2, 3) for item in facts_of(tmp_path / page_name(number))["items"]]
    assert shown == [str(i) for i in range(len(lines))]
    html = (tmp_path / "index.html").read_text()
    assert f"pictures 1 to {MOST} of {len(lines)}" in html and f"{names[1]} ({len(range(0, len(lines), 3))})" in html


def test_the_page_filters_sorts_and_loads_pictures_as_they_come_into_view(config, tmp_path, chromium):
    names, count = [entry.name for entry in config.classes], 130
    (tmp_path / "overlays").mkdir()
    (tmp_path / "masks").mkdir()
    lines = [
        line(i, {names[0]: 0.9, names[1 + (i % 10 == 3)]: 0.001 * i}, confidence=(i * 7 % count) / count) for i in range(count)
    ]
    lines[4] = {"name": "4", "image": "in/4.jpg", "error": "in/4.jpg: no picture"}
    lines[5] |= {"overlay": "overlays/a #5 ä%41.jpg"}
    del lines[6]["overlay"]  # predicted with --no-overlays
    for one in lines:
        if "overlay" in one:
            Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / one["overlay"])
    Image.fromarray(np.ones((40, 60), np.uint8)).save(tmp_path / "masks/6.png")
    write_pages(tmp_path, lines, config)
    context = chromium.new_context(viewport={"width": 390, "height": 700})
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda m: messages.append(m.text))
    page.on("pageerror", lambda e: messages.append(str(e)))
    page.on("request", lambda r: requests.append(r.url))
    try:
        page.goto((tmp_path / "index.html").as_uri())
        assert page.locator("#cards .picture").count() == 48 and f"{count} of {count} pictures, page 1 of 3" in page.text_content(
            "#count"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.wait_for_timeout(300)
        assert 1 <= sum(".jpg" in url for url in requests) < 30  # lazy: not the 47 of this page
        assert "no picture" in page.locator("#cards .picture").nth(4).text_content()
        page.locator("#cards .picture").nth(6).scroll_into_view_if_needed()
        for place in (5, 6):
            page.wait_for_timeout(200)
            assert page.locator("#cards .picture img").nth(place - 1).evaluate("node => node.complete && node.naturalWidth") == 60
        page.select_option("#class", label=f"{names[2]} (13)")
        assert page.locator("#cards .picture").count() == 13
        page.select_option("#sort", "area")
        shown = page.locator("#cards h3").all_text_contents()
        assert shown == [str(i) for i in range(123, 0, -10)]
        page.select_option("#class", "")
        page.select_option("#sort", "unsure")
        sure = {one["name"]: one.get("confidence", 2) for one in lines}
        shown = [sure[name] for name in page.locator("#cards h3").all_text_contents()]
        assert shown == sorted(shown) and shown[0] == min(sure.values())
        page.fill("#search", "in/77")
        assert page.locator("#cards h3").all_text_contents() == ["77"]
        assert messages == [] and all(url.startswith("file:") for url in requests)
    finally:
        context.close()
