"""The report in a real browser: it opens from a file, filters, slides, obeys the keyboard, turns dark, and asks for nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from syn4seg.report.compare import write_comparison
from syn4seg.report.page import write_report
from syn4seg.report.reading import read_pages, read_records
from syn4seg.report.sheets import WHO_COLORS, provenance
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.store.rundir import RunDir


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A run with a report; one of its samples was rejected before SABR."""
    root = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(finished[0], root)
    copy = RunDir(root)
    row = next(r for r in read_records(copy, 0).to_pylist() if not r["reason"])
    record = copy.draw(0).record(row["class"], row["sample_id"])
    rejected = json.loads(record.read_text()) | {"reason": "target_too_small"}
    record.write_text(json.dumps({key: value for key, value in rejected.items() if key != "label"}))
    copy.draw(0).label("label", row["class"], row["sample_id"]).unlink()
    copy.draw(0).manifest.unlink()
    write_report(copy, 0, None, lambda *_: None)
    return copy


class Watched:
    """A page, with its messages and errors, and the addresses that it requested."""

    def __init__(self, chromium, **options):
        self.context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.page = self.context.new_page()
        self.messages, self.requests = [], []
        self.page.on("console", lambda m: self.messages.append(m.text))
        self.page.on("pageerror", lambda e: self.messages.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def check(self):
        assert self.messages == []
        assert [url for url in self.requests if not url.startswith(("file:", "blob:", "data:"))] == []


@pytest.fixture
def watched(chromium, run):
    with Watched(chromium) as it:
        it.page.goto((run.root / "report.html").as_uri())
        yield it
        it.check()


def card_count(page):
    return page.locator("#cards .card").count()


def test_every_sample_that_has_an_image_is_in_the_gallery(watched, run):
    total = len(read_records(run, 0).to_pylist())
    assert card_count(watched.page) == total
    assert f"{total} of {total} samples" in watched.page.text_content("#count")


def test_filters_show_what_fits_them_and_nothing_else(watched, run):
    page, rows = watched.page, read_records(run, 0).to_pylist()
    name = rows[0]["class"]
    page.select_option("#class", name)
    assert card_count(page) == sum(row["class"] == name for row in rows)
    page.select_option("#class", "")
    for verdict, fits in (("accepted", lambda r: not r["reason"]), ("rejected", lambda r: r["reason"])):
        page.select_option("#reason", verdict)
        expected = sum(bool(fits(row)) for row in rows)
        assert card_count(page) == expected
        if not expected:
            assert "No sample fits" in page.text_content("#cards")
    page.select_option("#reason", "")
    page.fill("#search", rows[-1]["sample_id"])
    assert card_count(page) == 1
    page.fill("#search", "")
    similar = {
        row["sample_id"]: [
            r["similarity"]
            for r in json.loads(row["audit"]).get("regions", ())
            if r["class"] == row["class_id"] and r["similarity"] is not None
        ]
        for row in rows
    }
    most = sorted(max(values) for values in similar.values() if values)[1]
    page.evaluate(f"const s = document.getElementById('score'); s.value = {most}; s.dispatchEvent(new Event('input'))")
    limit = float(page.input_value("#score"))
    assert 0 < card_count(page) == sum(max(values, default=-2) <= limit for values in similar.values()) < len(similar)


def test_sorting_by_change_puts_the_most_changed_first(watched):
    changes = [float(text.split("changed ")[1].split(" %")[0]) for text in watched.page.locator(".card .words").all_text_contents()]
    assert changes == sorted(changes, reverse=True) and changes[0] > 0


def test_the_keyboard_walks_opens_slides_and_closes(watched):
    page = watched.page
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.i") == "0"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.i") == "1"
    page.keyboard.press("Enter")
    title = page.text_content("#title")
    assert page.evaluate("document.getElementById('detail').open") and title
    page.keyboard.press("ArrowRight")
    assert page.text_content("#title") != title
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#title") == title
    before = page.evaluate("getComputedStyle(document.querySelector('#panes .label')).opacity")
    page.keyboard.press("]")
    assert float(page.evaluate("getComputedStyle(document.querySelector('#panes .label')).opacity")) > float(before)
    page.keyboard.press("+")
    assert page.text_content("#zoom-value") == "2x"
    page.keyboard.press("p")
    assert page.is_checked("#by-who-too") and page.is_visible("#panes .who")
    assert "APR" in page.text_content("#legend-too")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.getElementById('detail').open")
    assert page.evaluate("document.activeElement.dataset.i") == "1"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("a")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.i") == "0" and page.input_value("#search") == "a"


def test_an_opened_sample_tells_its_story(watched, run):
    page, row = watched.page, next(r for r in read_records(run, 0).to_pylist() if r["reason"])
    page.fill("#search", row["sample_id"])
    page.locator("#cards .card").first.click()
    text = page.text_content("#story")
    assert f"Rejected: {row['reason']}" in text and "APF" in text and "APR" in text


def test_a_click_on_the_map_opens_a_sample_and_leaves_the_gallery_as_it_was(watched, run):
    page = watched.page
    before = page.locator("#cards .card").all_text_contents()
    point = page.locator("#map button").last
    prompt = point.get_attribute("aria-label")
    point.evaluate("node => node.click()")
    assert page.text_content("#prompt") == prompt and page.is_disabled("#before") and page.is_disabled("#after")
    page.keyboard.press("Escape")
    assert page.locator("#cards .card").all_text_contents() == before
    page.locator("#cards .card").first.click()
    assert page.text_content("#title").split(": ")[0] in before[0]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A made-up run of 230 samples: four pages, three sheets, the last of them short."""
    benchmark = importlib.util.spec_from_file_location("report", Path(__file__).parents[2] / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(benchmark)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(benchmark.origin).parent))
        benchmark.loader.exec_module(module)
    run = module.make_run(tmp_path_factory.mktemp("many") / "run", 230, None)
    write_report(RunDir(run.root), 0, None, lambda *_: None)
    return RunDir(run.root)


def test_pages_go_through_all_samples_once_and_every_thumbnail_is_its_own(chromium, many):
    with Watched(chromium) as it:
        it.page.goto((many.root / "report.html").as_uri())
        it.page.select_option("#sort", "id")
        prompts = []
        while True:
            prompts += it.page.locator("#cards .card .words span:first-of-type").all_text_contents()
            if it.page.is_disabled("#next"):
                break
            it.page.keyboard.press("n")
        assert len(prompts) == len(set(prompts)) == 230
        for sample in (s for page in read_pages(many, 0, read_records(many, 0).take([0, 99, 100, 229])) for s in page):
            it.page.fill("#search", sample.record["sample_id"])
            it.page.locator("#cards .card").first.click()
            seen = colours(it.page, "#panes .pane:first-child .view").mean((0, 1))
            assert np.abs(seen - sample.image.mean((0, 1))).max() < 6
            it.page.keyboard.press("Escape")
        it.check()


def test_closing_after_a_walk_over_the_end_of_a_page_shows_that_page(chromium, many):
    with Watched(chromium) as it:
        it.page.goto((many.root / "report.html").as_uri())
        it.page.locator("#cards .card").nth(59).click()
        it.page.keyboard.press("ArrowRight")
        it.page.keyboard.press("Escape")
        it.page.wait_for_selector("#count:has-text('page 2 of 4')", timeout=5000)
        assert it.page.evaluate("document.activeElement.dataset.i") == "60"


def test_a_stage_that_was_never_made_is_not_shown_as_background(watched, run):
    row = next(r for r in read_records(run, 0).to_pylist() if r["reason"])
    watched.page.fill("#search", row["sample_id"])
    watched.page.locator("#cards .card").first.click()
    assert watched.page.locator("#panes .pane:nth-child(5) .absent").text_content() == "not made"
    assert watched.page.locator("#panes .absent").count() == 1
    watched.page.keyboard.press("p")
    assert watched.page.is_visible("#panes .pane:nth-child(4) .who")


def test_what_needs_attention_comes_first(watched, run):
    page = watched.page
    shares = {i["id"]: dict(i["shares"]).get(i["k"], 0) for i in json.loads(page.text_content("#gallery-data"))["items"]}
    page.select_option("#sort", "target")
    page.locator("#cards .card").first.click()
    assert shares[page.text_content("#title").split(": ")[1]] == min(shares.values())
    page.keyboard.press("Escape")
    page.select_option("#sort", "truth")
    ious = [float(text.split("IoU ")[1][:4]) for text in page.locator(".card .words").all_text_contents()]
    assert ious == sorted(ious)


def colours(page, selector):
    """Return the pixels of an element as the browser paints them, (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def near(pixels, color):
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(pixels - rgb).max(-1) <= 3).mean()


@pytest.mark.parametrize("beside", [True, False])
def test_who_decided_a_pixel_is_painted_as_the_labels_say(chromium, run, tmp_path, beside):
    """From the full pictures beside the page, by filters and differences, and from the thumbnails alone."""
    target = run.root / "report.html"
    if not beside:
        target = tmp_path / "copy.html"
        shutil.copy(run.root / "report.html", target)
    sample = max(
        (s for page in read_pages(run, 0, read_records(run, 0)) for s in page if len(s.labels) == len(LABEL_COLUMNS)),
        key=lambda s: len(np.unique(provenance(s.labels))),
    )
    codes = provenance(sample.labels)
    with Watched(chromium) as it:
        it.page.goto(target.as_uri())
        it.page.fill("#search", sample.record["sample_id"])
        it.page.locator("#cards .card").first.click()
        it.page.keyboard.press("p")
        it.page.evaluate("document.documentElement.style.setProperty('--opacity', 1)")
        it.page.wait_for_timeout(500)
        assert it.page.locator("#panes .who .stack").count() == (4 if beside else 0)
        seen = colours(it.page, "#panes .pane:nth-child(5) .view")
        for code in range(1, len(WHO_COLORS)):
            assert abs(near(seen, WHO_COLORS[code]) - (codes == code).mean()) < 0.03, code
        assert len(np.unique(codes)) >= 3
        it.check()  # also of the copy, which asks for no picture that is not there


def test_dark_and_narrow_pages_stay_readable(chromium, run):
    def luminance(page, what):
        parts = page.evaluate(f"getComputedStyle(document.body).{what}").strip("rgb()").split(",")
        return sum(float(part) for part in parts)

    with Watched(chromium, color_scheme="dark") as it:
        it.page.goto((run.root / "report.html").as_uri())
        assert luminance(it.page, "backgroundColor") < 150 < 500 < luminance(it.page, "color")
        it.page.set_viewport_size({"width": 360, "height": 700})
        assert it.page.evaluate("document.documentElement.scrollWidth") <= 360
        it.page.locator("#cards .card").first.click()
        assert it.page.evaluate("document.documentElement.scrollWidth") <= 360
        it.check()


WIDTHS = (1280, 390, 1920)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_shows_pictures_first_and_all_pictures_of_a_sample_in_order(chromium, run, width):
    """No line of the page is wider than the screen; the six pictures of a card share a line, or two lines of three on a phone."""
    with Watched(chromium) as it:
        it.page.set_viewport_size({"width": width, "height": 844})
        it.page.goto((run.root / "report.html").as_uri())
        assert it.page.evaluate("document.documentElement.scrollWidth") <= width
        tops = it.page.evaluate(
            "[...document.querySelectorAll('#cards .card:first-child .pane')].slice(0, 6).map(n => n.offsetTop)"
        )
        assert len(tops) == 6 and len(set(tops)) == (2 if width < 640 else 1)
        if width < 640:
            assert tops[:3] == [tops[0]] * 3 and tops[3:] == [tops[3]] * 3
        top, bottom = (it.page.evaluate(f"document.querySelector('{s}').getBoundingClientRect().top") for s in (".shot", "#scores"))
        assert top < 844 * 0.6 and top < bottom
        if width >= 1280:  # the chart stands beside the table
            table, chart = (
                it.page.evaluate(f"document.querySelector('{s}').getBoundingClientRect().left")
                for s in ("#scores", ".beside figure")
            )
            assert chart > table + 300
        it.check()


def test_on_a_phone_the_harmonic_column_and_the_letters_of_charts_can_be_read(chromium, run):
    with Watched(chromium) as it:
        it.page.set_viewport_size({"width": 390, "height": 844})
        it.page.goto((run.root / "report.html").as_uri())
        right = it.page.evaluate(
            "Math.max(...[...document.querySelectorAll('#scores th, #scores td')].map(n => n.getBoundingClientRect().right))"
        )
        assert right <= 390
        heights = it.page.evaluate("[...document.querySelectorAll('.chart text')].map(n => n.getBoundingClientRect().height)")
        assert heights and min(heights) > 8
        it.check()


def test_an_address_opens_its_sample_and_an_opened_sample_has_an_address(chromium, run):
    rows, page = read_records(run, 0).to_pylist(), (run.root / "report.html").as_uri()
    with Watched(chromium) as it:
        it.page.goto(f"{page}#sample={rows[2]['sample_id']}")
        assert it.page.text_content("#title").endswith(rows[2]["sample_id"])
        it.page.keyboard.press("Escape")
        it.page.wait_for_timeout(100)
        assert it.page.evaluate("location.hash") == ""
        link = it.page.locator("#worst-prompts a").first
        link.click()
        assert it.page.url.endswith(link.get_attribute("href")) and it.page.evaluate("document.getElementById('detail').open")
        it.page.keyboard.press("Escape")
        it.page.locator("#cards .card").nth(1).click()
        shown = it.page.text_content("#title").split(": ")[1]
        assert it.page.url.endswith(f"#sample={shown}")
        it.page.goto("about:blank")
        for strange in ("none", "%zz", "<b>"):
            it.page.goto(f"{page}#sample={strange}")
            it.page.reload()
            assert "is not in this page" in it.page.text_content("#count")
        it.check()


def test_a_run_that_was_moved_asks_for_its_pictures_only_when_it_is_told_to(chromium, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run.root, moved)
    with Watched(chromium) as it:
        it.page.goto((moved / "report.html").as_uri())
        it.page.locator("#cards .card").first.click()
        it.page.wait_for_timeout(200)
        assert not [url for url in it.requests if url.endswith(".png")]
        it.page.click("#full")
        it.page.wait_for_selector("#panes img.photo", timeout=5000)
        assert it.page.is_hidden("#full")
        it.check()


def test_a_comparison_opens_and_shows_where_labels_differ(chromium, run, tmp_path):
    other = RunDir(tmp_path / "other")
    shutil.copytree(run.root, other.root)
    row = next(r for r in read_records(other, 0).to_pylist() if not r["reason"])
    record = other.draw(0).record(row["class"], row["sample_id"])
    label = np.array(Image.open(other.draw(0).label("label", row["class"], row["sample_id"])))
    label[:7] = 1
    Image.fromarray(label).save(other.draw(0).label("label", row["class"], row["sample_id"]))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"label": "0" * 32}))
    other.draw(0).manifest.unlink(missing_ok=True)
    target, _, damage = write_comparison([run, other], 0, str(tmp_path / "compare.html"), lambda *_: None)
    assert damage == []
    with Watched(chromium) as it:
        it.page.goto(Path(target).as_uri())
        assert card_count(it.page) == 1
        it.page.locator("#cards .card").first.click()
        assert "pixels have another label" in it.page.text_content("#story")
        it.check()
