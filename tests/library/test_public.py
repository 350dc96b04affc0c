"""What `import syn4seg` offers: names, pictures of samples, examples; an import that loads nothing."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import syn4seg
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.report.reading import GallerySample
from syn4seg.report.sheets import class_colors
from syn4seg.stages.setup import load_dataset
from syn4seg.store.images import read_image
from syn4seg.store.rundir import RunDir

REPOSITORY = Path(__file__).parents[2]


# --------------------------------------------------------------------------------------------------- pictures
def panels_of(page: str) -> list[np.ndarray]:
    found = [np.frombuffer(base64.b64decode(data), np.uint8) for data in re.findall(r"base64,([^']+)'", page)]
    return [cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] for data in found]  # pyright: ignore


def test_a_sample_of_a_run_is_shown_with_every_label_its_classes_prompt_and_reason(finished, tmp_path):
    run = RunDir(finished[0])
    record = next(r for r in run.draw(1).records() if not r["reason"])
    picture = syn4seg.show(finished[0], record["sample_id"], draw=1)
    page = picture._repr_html_()
    assert record["prompt"] in page and record["sample_id"] in page and f"> {record['class']}<" in page
    image, *labels = panels_of(page)
    np.testing.assert_array_equal(image, read_image(run.image(record["class"], record["sample_id"])))
    assert picture.names == load_dataset(load(run.config))[1].index_names, "by class index, not by alphabet"
    names, seen = list(picture.legend), set()
    for stage, shown in zip(("draft", "kept", "relabeled", "label"), labels, strict=True):
        true = read_image(run.draw(1).label(stage, record["class"], record["sample_id"]))
        seen |= set(np.unique(true).tolist())
        for value in np.unique(true):
            assert len(np.unique(shown[true == value], axis=0)) == 1, "one colour per label value"
    assert len(names) == len(seen) == len(set(picture.legend.values())) and "background" in names
    picture.save(tmp_path / "x.png")
    picture.save(str(tmp_path / "x.html"))
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and page in (tmp_path / "x.html").read_text()
    with pytest.raises(UserError, match=r"sample_id is 'hdig'; expected one of the 24 samples of draw 1, e.g. hdig-"):
        syn4seg.show(finished[0], "hdig", draw=1)
    with pytest.raises(UserError, match=r"not a run \(no config.yaml\)"):
        syn4seg.show(tmp_path, record["sample_id"])
    with pytest.raises(UserError, match=r"draw is 7; expected one of \[0, 1\]"):
        syn4seg.show(finished[0], record["sample_id"], draw=7)


def test_every_class_of_a_picture_has_the_colour_of_the_report_and_none_looks_like_the_background():
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    names = ["background", *(f"name {k}" for k in range(1, 255))]
    for given in ((), names):
        picture = syn4seg.show(GallerySample({}, None, {"label": label}), names=given)
        pixels = picture.panels["label (SABR)"].reshape(256, 3)
        for value, code in enumerate(class_colors(255)[1:], 1):
            assert bytes(pixels[value]).hex() == code[1:]
            assert np.abs(pixels[value].astype(int) - pixels[0]).max() > 100
        np.testing.assert_array_equal(pixels[[0, 255]], [picture.legend["background"], picture.legend["unlabeled"]])
    assert syn4seg.show(GallerySample({}, None, {"label": label[:1, :4]}), names=names).legend["name 3"] == tuple(pixels[3])


def test_a_picture_escapes_what_it_shows_and_needs_neither_image_nor_display():
    evil = {"sample_id": "x", "class": "dog", "prompt": "a <script>dog</script> & $\\bad{math}$", "reason": "fault: <b>"}
    labels = {"label": np.array([[0, 3], [255, 9]], np.uint8)}
    for picture in (
        syn4seg.show(GallerySample(evil, None, {})),
        syn4seg.show(GallerySample(evil, np.zeros((2, 2, 3), np.uint8), labels)),
        syn4seg.show(GallerySample(evil, None, {}, "missing <i>")),
        syn4seg.show(GallerySample({}, None, {})),
    ):
        page = picture._repr_html_()
        assert not re.search(r"<(script|b|i)>", page)
        assert picture._repr_png_()[:4] == b"\x89PNG"
    assert "rejected: fault: &lt;b&gt;" in syn4seg.show(GallerySample(evil, None, {}))._repr_html_()
    named = syn4seg.show(GallerySample(evil, None, labels), names=("background", "a", "b", "<c>"))
    assert list(named.legend) == ["background", "<c>", "class 9", "unlabeled"] and "&lt;c&gt;" in named._repr_html_()
    assert "matplotlib.pyplot" not in sys.modules


# ------------------------------------------------------------------------------------------------- costs nothing
def python(*words: str, cwd: Path | None = None) -> str:
    given = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=given, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_and_names_everything():
    code = (
        "import sys; before = set(sys.modules); import syn4seg\n"
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('syn4seg')))\n"
        "print([m for m in sys.modules if m.startswith('syn4seg')])\n"
        "print(set(syn4seg.__all__) <= set(dir(syn4seg)), hasattr(syn4seg, 'nothing'))\n"
        "syn4seg.filter_regions; print({'numpy', 'torch', 'ray'} & set(sys.modules))\n"
    )
    loaded, ours, named, then = python("-c", code).splitlines()
    assert (
        all("typing" in name or name == "collections.abc" for name in eval(loaded))
        and ours == "['syn4seg']"
        and named == "True False"
    )
    assert then == "{'numpy'}", "filtering arrays needs no torch"


@pytest.mark.parametrize("name", ["filter_regions", "relabel", "refine_boundary", "prompt_bank", "evaluate", "show"])
def test_an_example_runs_without_ray(name, tmp_path):
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); print('ray' in sys.modules)"
    said = python("-c", code, str(REPOSITORY / "examples" / f"{name}.py"), cwd=tmp_path).splitlines()
    assert len(said) >= 2 and said[-1] == "False"
    assert {p.name for p in tmp_path.iterdir()} == ({"sample.png", "sample.html"} if name == "show" else set())
