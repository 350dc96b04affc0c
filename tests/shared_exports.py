"""A small run made by hand, in either layout, with everything that is awkward to export; what is truly in it; and how others
read each format."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image as Picture

from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.exports.choice import ExportOptions
from syn4seg.exports.writing import write
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.results import write_manifest
from syn4seg.store.files import write_atomically
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage, StoredSample

PROMPTS = (
    "<script>alert(1)</script> & <b>",
    "two\nlines\r\n\tand a tab",
    "nul \x00, bell \x07, escape \x1b[31m",
    "猫 ü 🐈 \u202e",
    "quotes ' \" \\ | ` , ;",
    "---\nlicense: mit\n---",
    "",
)
Read = Iterator[tuple[str, np.ndarray, np.ndarray]]
AUDIT = {"lambda_keep": 0.5, "nothing": float("nan")}
REJECTED, FAULT = "target_too_small", "fault: synthesis: black"


@dataclass(frozen=True)
class Truth:
    """What was put into a sample."""

    image: np.ndarray | None
    label: np.ndarray | None
    prompt: str
    reason: str
    class_name: str


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def label_of(seed: int, height: int, width: int, classes: int, target: int) -> np.ndarray:
    """Blocks of many classes, the target and 255 among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes, (height // 3 + 1, width // 4 + 1)).astype(np.uint8)
    blocks[rng.random(blocks.shape) < 0.3] = 0
    label = np.kron(blocks, np.ones((3, 4), np.uint8))[:height, :width]
    label[:2, :3], label[-1] = target, 255
    return label


def made_run(
    root: Path,
    layout: str = "files",
    *,
    names: tuple[str, ...] = ("cat", "dog", "toy car", "bird.x"),
    samples: int = 14,
    side: tuple[int, int] = (13, 22),
    manifest: bool = True,
    reasons: dict[int, str] | None = None,
    planned: int | None = None,
    data: Path | None = None,
    control: tuple[int, ...] = (),
    figures: bool = False,
) -> tuple[RunDir, Config, dict[str, Truth]]:
    """A run whose last two classes are novel. Sample 3 is rejected, sample 5 a fault, unless `reasons` says otherwise.

    Args:
        planned: samples in the plan; more than `samples` make an unfinished run.
        data: folder of the data set, which a fingerprint may depend on.
        control: samples of the control bank.
        figures: records have the figures of `audit_of`.
    """
    reasons = {3: REJECTED, 5: FAULT} if reasons is None else reasons
    data = _data(data or root / "data", names)
    config = load(None, ["name=made", "data.source=folder", f"data.root={data}", "base.checkpoint=train", f"layout={layout}"])
    run = RunDir(root / "run")
    run.open(config)
    run.write_provenance(config, {"syn4seg-ray": "0.1.0"})
    rows, found, truth = [], [], {}
    for i in range(planned or samples):
        index = len(names) - i % 2
        row = {
            "sample_id": f"hdig-{names[index - 1].replace(' ', '_')}-{i:05d}",
            "class_id": index,
            "batch": i // 4,
            "prompt": PROMPTS[i % len(PROMPTS)],
            "noise_seed": 2**61 + i,
        }
        rows.append(row | {"bank": "class_name" if i in control else "hdig", "prompt_row": 0, "padding": False})
        if i < samples:
            sample, image = _sample(row, names, reasons.get(i, ""), i, side, figures)
            found.append((sample, image))
            truth[row["sample_id"]] = Truth(image, _last(sample), row["prompt"], sample.record["reason"], names[index - 1])
    pq.write_table(pa.Table.from_pylist(rows).cast(_plan(rows)), run.plan)
    run.samples.write_images(
        [
            StoredImage(s.record["sample_id"], s.record["class"], s.record["batch"], pixels, {})
            for s, pixels in found
            if pixels is not None
        ]
    )
    run.draw(0).write([sample for sample, _ in found])
    if manifest:
        write_manifest(run, 0)
    return run, config, truth


def _plan(rows: list[dict]) -> pa.Schema:
    kinds = {"class_id": pa.int32(), "batch": pa.int32(), "prompt_row": pa.int32()}
    return pa.schema([(f.name, kinds.get(f.name, f.type)) for f in pa.Table.from_pylist(rows).schema])


def _last(sample: StoredSample) -> np.ndarray | None:
    return next((sample.labels[s] for s in reversed(LABEL_COLUMNS) if s in sample.labels), None)


def audit_of(i: int, target: int) -> dict:
    """Agreements of mean i / 20, and i / 20 as the largest similarity of the target's regions; sample 1 has no figure."""
    if i == 1:
        return AUDIT
    similar = [(target, i / 20), (target, -0.5), (target, None), (1, 0.99)]
    regions = [{"class": k, "area": 9, "similarity": s, "why": ""} for k, s in similar]
    return AUDIT | {"sam": {"agreement": [i / 20 + 0.1, i / 20 - 0.1]}, "regions": regions}


def _sample(
    row: dict, names: tuple[str, ...], reason: str, i: int, side: tuple[int, int], figures: bool
) -> tuple[StoredSample, np.ndarray | None]:
    record = row | {
        "class": names[row["class_id"] - 1],
        "reason": reason,
        "audit": audit_of(i, row["class_id"]) if figures else AUDIT,
    }
    if reason.startswith("fault"):
        return StoredSample(record, {}), None
    stages = LABEL_COLUMNS[:-1] if reason else LABEL_COLUMNS
    labels = {s: label_of(100 * i + k, *side, len(names) + 1, row["class_id"]) for k, s in enumerate(stages)}
    image = noise(i, *side, 3)
    return StoredSample(record | {s: pixel_digest(x) for s, x in labels.items()} | {"image": pixel_digest(image)}, labels), image


def _data(folder: Path, names: tuple[str, ...]) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i, which in enumerate(("train", "val")):
        Picture.fromarray(noise(i, 8, 8, 3)).save(folder / "images" / f"{i}.png")
        Picture.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / f"{i}.png")
        (folder / f"{which}.txt").write_text(f"{i}\n")
    write_atomically(folder / "classes.json", json.dumps({"classes": names, "folds_novel": [names[-2:]]}).encode())
    return folder


def silent(*_: object) -> None:
    return None


def export(run, config, to, format="voc", note=silent, warn=silent, shard_mb=None, name=None, **choice):
    return write(
        run, config, ExportOptions(**choice), str(to), format, shard_mb=shard_mb, name=name, note=note, warn=warn, progress=silent
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------- what others read
def pixels(source) -> np.ndarray:
    return np.array(Picture.open(io.BytesIO(source) if isinstance(source, bytes) else source))


def read_voc(folder: Path, split: str) -> Read:
    for name in (folder / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().splitlines():
        label = Picture.open(folder / "SegmentationClass" / f"{name}.png")
        assert label.mode == "P"
        yield name, pixels(folder / "JPEGImages" / f"{name}.png"), np.array(label)


def read_coco(folder: Path, split: str) -> Read:
    """Panoptic: the label out of the PNG of segment ids and its JSON; 0 is COCO's VOID, and what is no thing is background."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations" / f"panoptic_{split}.json")
    for entry in coco.dataset["annotations"]:
        image = coco.imgs[entry["image_id"]]
        red, green, blue = np.moveaxis(pixels(folder / f"annotations/panoptic_{split}" / entry["file_name"]).astype(int), 2, 0)
        ids, label = red + 256 * green + 65536 * blue, np.full(red.shape, 255, np.uint8)
        for segment in entry["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
            label[ids == segment["id"]] = segment["category_id"] if coco.cats[segment["category_id"]]["isthing"] else 0
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in entry["segments_info"]}
        assert label.shape == (image["height"], image["width"])
        yield image["lineage"]["sample_id"], pixels(folder / "images" / image["file_name"]), label


def read_hf(folder: Path, split: str) -> Read:
    import datasets

    for row in datasets.load_dataset(str(folder), split=split, cache_dir=str(folder.parent / "cache")):
        yield row["sample_id"], np.array(row["image"]), np.array(row["label"])


def read_webdataset(folder: Path, split: str) -> Read:
    import webdataset as wds

    tars = sorted(map(str, folder.glob(f"{split}-?????.tar")))
    for sample in wds.WebDataset(tars, shardshuffle=False):
        yield json.loads(sample["json"])["sample_id"], pixels(sample["image.png"]), pixels(sample["label.png"])


def read_mmseg(folder: Path, split: str) -> Read:
    """By the rules of mmseg 1.x's BaseSegDataset and LoadAnnotations (mmseg itself cannot be installed beside this project):
    all files below img_path with img_suffix, sorted; the label is the same path with seg_map_suffix, decoded unchanged."""
    about = runpy.run_path(str(folder / "dataset.py"))["DATASETS"][split]
    assert (about["type"], about["ignore_index"], about["reduce_zero_label"]) == ("BaseSegDataset", 255, False)
    images, labels = (folder / about["data_prefix"][key] for key in ("img_path", "seg_map_path"))
    for path in sorted(p for p in images.rglob("*") if p.name.endswith(about["img_suffix"])):
        name = str(path.relative_to(images))[: -len(about["img_suffix"])]
        label = Picture.open(labels / (name + about["seg_map_suffix"]))
        assert label.mode == "L"
        yield name, pixels(path), np.array(label).squeeze().astype(np.uint8)


def filled(lines: list[str], shape: tuple[int, int]) -> np.ndarray:
    """The label that polygons describe, as Ultralytics fills them: to whole pixels, by parity, border included."""
    label = np.zeros(shape, np.uint8)
    for line in lines:
        number, *points = line.split()
        shares, mask = np.array(points, float).reshape(-1, 2), np.zeros(shape, np.uint8)
        assert len(shares) >= 3 and (shares >= 0).all() and (shares <= 1).all()
        cv2.fillPoly(mask, [(shares * [shape[1], shape[0]]).astype(np.int32)], (1,))
        assert not label[mask > 0].any(), "no two polygons share a pixel"
        label[mask > 0] = int(number) + 1
    return label


def read_yolo(folder: Path, split: str) -> Read:
    """By the rules of Ultralytics: labels/ for images/ in the path, data.yaml with train, val and names from 0 on."""
    about = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert list(about["names"]) == list(range(len(about["names"])))
    assert all((folder / place).is_dir() for key in ("train", "val") for place in about[key])
    for path in sorted((folder / "images" / split).iterdir()):
        image = pixels(path)
        lines = (folder / "labels" / split / f"{path.stem}.txt").read_text().splitlines()
        assert all(int(line.split()[0]) in about["names"] for line in lines)
        yield path.stem, image, filled(lines, image.shape[:2])


def read_parquet(folder: Path, split: str) -> Read:
    for path in sorted(folder.glob(f"data/{split}-?????.parquet")):
        for row in pq.read_table(path).to_pylist():
            yield row["sample_id"], pixels(row["image"]), pixels(row["label"])


READERS = {
    "voc": read_voc,
    "coco": read_coco,
    "hf": read_hf,
    "webdataset": read_webdataset,
    "mmseg": read_mmseg,
    "yolo": read_yolo,
    "parquet": read_parquet,
}


def compare(found: Read, truth: dict[str, Truth], format: str = "") -> None:
    """Compare every pixel; YOLO's polygons cannot tell unlabeled from background."""
    seen = []
    for name, image, label in found:
        np.testing.assert_array_equal(image, truth[name].image)
        known = truth[name].label
        assert known is not None
        np.testing.assert_array_equal(label, np.where(known == 255, 0, known) if format == "yolo" else known)
        seen.append(name)
    assert sorted(seen) == sorted(truth)
