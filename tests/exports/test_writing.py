"""Exports as their own ecosystems read them: every pixel of image and label comes back, and where each sample is from."""

from __future__ import annotations

import pytest

from syn4seg.exports.formats import FORMATS
from tests.shared_exports import READERS, REJECTED, compare, contents, export, made_run


# ---------------------------------------------------------------------------------------------- the pixels
@pytest.mark.parametrize("format", FORMATS)
def test_every_pixel_comes_back_and_rejected_samples_are_a_split_of_their_own(made, tmp_path, format):
    run, config, truth = made
    assert export(run, config, tmp_path / "out", format, only="all") == {"accepted": 12, "rejected": 1, "fault": 1}
    assert any((t.label == 255).any() for t in truth.values() if t.label is not None)
    compare(READERS[format](tmp_path / "out", "train"), {s: t for s, t in truth.items() if not t.reason}, format)
    compare(READERS[format](tmp_path / "out", "rejected"), {s: t for s, t in truth.items() if t.reason == REJECTED}, format)


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_samples_give_the_same_bytes_in_either_layout(tmp_path, format):
    found = []
    for name in ("files", "sharded", "files"):
        place = tmp_path / f"{len(found)}"
        run, config, _ = made_run(place, name, data=tmp_path / "data")
        export(run, config, place / "out", format, only="all")
        found.append(contents(place / "out"))
    assert len(found[0]) > 4 and found[0] == found[1] == found[2]
