"""Shared by the tests of the reports: the page of a run, its data, and a changed record."""

from __future__ import annotations

import json
import re

from syn4seg.report.page import write_report
from syn4seg.report.reading import read_records
from syn4seg.store.rundir import RunDir


def page_of(run: RunDir, draw: int = 0) -> str:
    """Return the report of a run."""
    target, _ = write_report(run, draw, None, lambda *_: None)
    return target.read_text("utf-8")


def data_of(html: str) -> dict:
    """Return the values that a page's script gets."""
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', html, re.S)[1])


def spoil(run: RunDir, **changes) -> dict:
    """Change the record of the first accepted sample of draw 0, and remove the manifest, so that records count."""
    row = next(r for r in read_records(run, 0).to_pylist() if not r["reason"])
    path = run.draw(0).record(row["class"], row["sample_id"])
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    run.draw(0).manifest.unlink()
    return row
