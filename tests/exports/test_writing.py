"""Exports as their own ecosystems read them: every pixel of image and label comes back, and where each sample is from."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage

from syn4seg.exports.about import palette
from syn4seg.exports.choosing import Choice
from syn4seg.exports.lineage import OURS, licences, public
from syn4seg.exports.sharded import shards
from syn4seg.exports.writing import FORMATS, write
from syn4seg.store.files import pixel_digest
from tests.shared_exports import FAULT, READERS, REJECTED, Truth, compare, contents, made_run, noise, pixels, silent

DOCS = Path(__file__).parents[2] / "docs" / "exports.md"


def export(run, config, to, format, **options) -> dict:
    said = {key: options.pop(key, silent) for key in ("note", "warn")}
    sizes = {key: options.pop(key) for key in ("shard_mb", "name") if key in options}
    return write(run, config, Choice(**options), str(to), format, progress=silent, **said, **sizes)


@pytest.fixture(scope="module", params=["files", "sharded"])
def made(request, tmp_path_factory):
    return made_run(tmp_path_factory.mktemp(request.param), request.param)


# ---------------------------------------------------------------------------------------------- the pixels
@pytest.mark.parametrize("format", FORMATS)
def test_every_pixel_comes_back_and_rejected_samples_are_a_split_of_their_own(made, tmp_path, format):
    run, config, truth = made
    assert export(run, config, tmp_path / "out", format, only="all") == {"accepted": 12, "rejected": 1, "fault": 1}
    assert any((t.label == 255).any() for t in truth.values() if t.label is not None)
    compare(READERS[format](tmp_path / "out", "train"), {s: t for s, t in truth.items() if not t.reason})
    compare(READERS[format](tmp_path / "out", "rejected"), {s: t for s, t in truth.items() if t.reason == REJECTED})


def test_instances_are_the_connected_components_of_each_class(made, tmp_path):
    from pycocotools import mask
    from pycocotools.coco import COCO

    run, config, truth = made
    export(run, config, tmp_path / "out", "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(tmp_path / "out" / "annotations" / "instances_train.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog", "toy car", "bird.x"]
    for image in coco.imgs.values():
        label = truth[image["lineage"]["sample_id"]].label
        masks = {(a["category_id"], coco.annToMask(a).tobytes()) for a in coco.imgToAnns[image["id"]]}
        parts = [(k, ndimage.label(label == k, np.ones((3, 3)))) for k in range(1, 5)]
        assert masks == {(k, (found == i + 1).astype(np.uint8).tobytes()) for k, (found, n) in parts for i in range(n)}
        for one in coco.imgToAnns[image["id"]]:
            assert one["area"] == mask.area(one["segmentation"]) and one["bbox"] == mask.toBbox(one["segmentation"]).tolist()
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_samples_give_the_same_bytes_in_either_layout(tmp_path, format):
    found = []
    for name in ("files", "sharded", "files"):
        place = tmp_path / f"{len(found)}"
        run, config, _ = made_run(place, name, data=tmp_path / "data")
        export(run, config, place / "out", format, only="all")
        found.append(contents(place / "out"))
    assert len(found[0]) > 4 and found[0] == found[1] == found[2]


# --------------------------------------------------------------------------------------------- the lineage
def lineage(folder: Path) -> dict[str, dict]:
    return {row["sample_id"]: row for row in pq.read_table(folder / "lineage.parquet").to_pylist()}


def test_every_sample_is_traced_to_prompt_seed_and_stages_whatever_its_prompt_holds(made, tmp_path):
    run, config, truth = made
    export(run, config, tmp_path / "out", "parquet", only="all")
    rows, prints = lineage(tmp_path / "out"), json.loads(run.provenance.read_text())["fingerprints"]
    assert set(rows) == set(truth)
    for i, (name, known) in enumerate(truth.items()):
        row = rows[name]
        assert (row["prompt"], row["reason"], row["class"]) == (known.prompt, known.reason, known.class_name)
        assert (row["noise_seed"], row["draw"], row["batch"]) == (2**61 + i, 0, i // 4)
        assert all(row[f"{stage}_fingerprint"] == prints[stage] for stage in ("prompts", "images", "base", "labels"))
        assert (row["generator"], row["generator_revision"]) == ("renderer", "syn4seg-ray 0.1.0")
        for key, array in (("image_digest", known.image), ("label_digest", known.label)):
            assert row[key] == (None if array is None else pixel_digest(array))
        assert json.loads(row["audit"]) == {"lambda_keep": 0.5, "nothing": None}
        assert row["split"] == {"": "train", REJECTED: "rejected", FAULT: ""}[known.reason]
        assert row["label_stage"] == {"": "label", REJECTED: "relabeled", FAULT: ""}[known.reason]


def test_lineage_travels_with_every_image_of_every_format(made, tmp_path):
    import datasets
    import webdataset as wds

    run, config, _ = made
    for format in FORMATS:
        export(run, config, tmp_path / format, format)
    rows = lineage(tmp_path / "voc")
    assert len(rows) == 12 and all(lineage(tmp_path / format) == rows for format in FORMATS)
    head = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    tar = wds.WebDataset(str(tmp_path / "webdataset/train-00000.tar"), shardshuffle=False)
    table = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    plain = pq.read_table(tmp_path / "parquet/data/train-00000.parquet").to_pylist()
    for found in ([i["lineage"] for i in head["images"]], [json.loads(s["json"]) for s in tar], table, plain):
        assert {r["sample_id"]: {k: v for k, v in r.items() if k not in ("image", "label")} for r in found} == rows


def test_a_model_is_named_without_its_path_and_licensed_only_by_what_it_certainly_is():
    assert public("stabilityai/stable-diffusion-3.5-large") == "stabilityai/stable-diffusion-3.5-large"
    assert (public("renderer"), public("/home/me/renderer"), public("./vit-b")) == ("renderer", "file renderer", "file vit-b")
    common = {"generator": "stabilityai/stable-diffusion-3.5-large", "segmenter": "resnet50-deep", "refiner": "vit-h"}
    found = licences(common | {"prompts_by": "chat some-model"})
    assert found["stabilityai/stable-diffusion-3.5-large"] == "Stability AI Community License"
    assert found["vit-h"] == "Apache-2.0 (Segment Anything)"
    assert found["resnet50-deep"] == found["some-model"] == "unknown: see the model's own licence"
    ours = {"generator": "embedded-sd3", "segmenter": "embedded", "refiner": "file renderer", "prompts_by": "grammar"}
    assert [licence == OURS for licence in licences(ours).values()] == [True, True, False, True]


# ------------------------------------------------------------------------------- splits, shards, many classes
@pytest.mark.parametrize("format", FORMATS)
def test_200_classes_with_spaces_are_split_by_class_and_chosen_by_name(tmp_path, format):
    names = (*(f"class {i} <b>|`" for i in range(198)), "potted plant", "potted.plant")
    run, config, truth = made_run(tmp_path, names=names, samples=6)
    export(run, config, tmp_path / "both", format, by_class=True, only="all")
    for split, name in (("199_potted_plant", "potted plant"), ("200_potted_plant", "potted.plant")):
        compare(
            READERS[format](tmp_path / "both", split), {s: t for s, t in truth.items() if t.class_name == name and not t.reason}
        )
    export(run, config, tmp_path / "one", format, classes=("potted plant",))
    compare(
        READERS[format](tmp_path / "one", "train"),
        {s: t for s, t in truth.items() if t.class_name == "potted plant" and not t.reason},
    )
    assert json.loads((tmp_path / "one" / "classes.json").read_text())["classes"] == ["background", *names]
    if format == "mmseg":
        meta = runpy.run_path(str(tmp_path / "one" / "dataset.py"))["METAINFO"]
        assert meta["classes"] == ("background", *names) and len(set(map(tuple, meta["palette"]))) == 201
    if format == "hf":
        assert "| 5 | class 4 &lt;b&gt;\\|\\` |" in (tmp_path / "one" / "README.md").read_text()


@pytest.mark.parametrize("format", ["hf", "webdataset", "parquet"])
def test_shards_are_cut_at_their_size_and_hold_every_sample_once(tmp_path, format):
    run, config, truth = made_run(tmp_path, samples=9, side=(250, 300), reasons={})
    export(run, config, tmp_path / "out", format, shard_mb=1)
    files = sorted(p for p in (tmp_path / "out").rglob("train-*"))
    assert [p.stem for p in files] == ["train-00000", "train-00001"]
    assert all(p.stat().st_size < 1.5e6 for p in files)
    compare(READERS[format](tmp_path / "out", "train"), truth)


def test_a_shard_never_mixes_splits_and_is_never_empty():
    from syn4seg.exports.choosing import Item

    items = [
        Item({"split": split, "sample_id": f"{split}{i}"}, noise(i, 4, 4, 3), noise(i, 4, 4)) for split in "ab" for i in range(3)
    ]
    found = [
        (name, [s.row["sample_id"] for s in samples]) for name, samples in shards(iter([("a", items[:3]), ("b", items[3:])]), 1)
    ]
    assert found == [(f"{split}-{i:05d}", [f"{split}{i}"]) for split in "ab" for i in range(3)]


def test_samples_come_in_the_order_of_the_plan_with_their_classes_mixed(made, tmp_path):
    run, config, _ = made
    export(run, config, tmp_path / "out", "voc")
    found = [int(name[-5:]) for name, *_ in READERS["voc"](tmp_path / "out", "train")]
    assert [i // 4 for i in found] == sorted(i // 4 for i in found)
    assert found != sorted(found) and {i % 2 for i in found[:4]} == {0, 1}  # inside a batch by id, which names the class


def test_a_run_is_listed_once_however_many_splits_there_are(made, tmp_path, monkeypatch):
    run, config, truth = made
    listed, images = [], type(run.samples).images
    monkeypatch.setattr(type(run.samples), "images", lambda self: listed.append(1) or images(self))
    export(run, config, tmp_path / "out", "voc", only="all", by_class=True)
    assert len(listed) == 1
    splits = {p.stem: p.read_text().split() for p in (tmp_path / "out/ImageSets/Segmentation").glob("*.txt")}
    assert len(splits) > 2 and sorted(itertools.chain(*splits.values())) == sorted(s for s, t in truth.items() if t.reason != FAULT)


def test_the_palette_is_the_one_of_pascal_voc(made, tmp_path):
    run, config, _ = made
    colours = palette(256).tolist()
    assert [colours[i] for i in (0, 1, 2, 8, 15, 20, 255)] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    export(run, config, tmp_path / "out", "voc")
    label = Image.open(next((tmp_path / "out" / "SegmentationClass").iterdir()))
    np.testing.assert_array_equal(np.array(label.convert("RGB")), palette(256)[np.array(label)])


# ------------------------------------------------------------------------------------------------ the guide
def test_every_command_and_snippet_of_the_guide_works_on_a_real_run(finished, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from syn4seg.cli import app

    (tmp_path / "runs").mkdir()
    os.symlink(finished[0], tmp_path / "runs" / "embedded")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOCS.read_text(), re.M | re.S)
    assert {kind for kind, _ in blocks} == {"", "python"}
    run, names = Path(finished[0]), []
    for kind, text in blocks:
        for line in text.splitlines() if not kind else ():
            words = line.partition("#")[0].split()
            assert words[0] == "syn4seg"
            done = CliRunner().invoke(app, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, done.output
        if kind == "python":
            space: dict = {}
            exec(compile(text, str(DOCS), "exec"), space)
            name, image, label = (space[key] for key in ("name", "image", "label"))
            folder = name.split("-")[1]
            np.testing.assert_array_equal(image, pixels(run / "images" / folder / f"{name}.png"))
            np.testing.assert_array_equal(label, pixels(run / "draws/0/labels" / folder / f"{name}.png"))
            names.append(name)
    assert len(names) == len(FORMATS)
    for format in FORMATS:
        truth = {
            p.stem: Truth(pixels(run / "images" / p.parent.name / p.name), pixels(p), "", "", "")
            for p in (run / "draws/0/labels").glob("*/*.png")
        }
        assert truth and any((t.label == 255).any() for t in truth.values())
        compare(READERS[format](tmp_path / "exports" / format, "train"), truth)
