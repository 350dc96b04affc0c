"""A small run made by hand, in either layout, with everything that is awkward to export; and what is truly in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image as Picture

from syn4seg.config import Config, load
from syn4seg.files import write_atomically
from syn4seg.rundir import RunDir, pixel_digest
from syn4seg.samples import Image, Sample
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.results import write_manifest
from syn4seg.tables import write_parquet

PROMPTS = ('<script>alert(1)</script> & <b>', "two\nlines\r\n\tand a tab", "nul \x00, bell \x07, escape \x1b[31m", "猫 ü 🐈 \u202e",
           "quotes ' \" \\ | ` , ;", "---\nlicense: mit\n---", "")  # fmt: skip
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


def made_run(root: Path, layout: str = "files", *, names: tuple[str, ...] = ("cat", "dog", "toy car", "bird.x"), samples: int = 14,
             side: tuple[int, int] = (13, 22), manifest: bool = True, reasons: dict[int, str] | None = None,
             planned: int | None = None, data: Path | None = None) -> tuple[RunDir, Config, dict[str, Truth]]:  # fmt: skip
    """A run whose last two classes are novel. Sample 3 is rejected, sample 5 a fault, unless `reasons` says otherwise.

    Args:
        planned: samples in the plan; more than `samples` make an unfinished run.
        data: folder of the data set, which a fingerprint may depend on.
    """
    reasons = {3: REJECTED, 5: FAULT} if reasons is None else reasons
    data = _data(data or root / "data", names)
    config = load(
        None, ["name=made", "data.source=folder", f"data.root={data}", "base.checkpoint=train", f"layout={layout}"]
    )
    run = RunDir(root / "run")
    run.open(config)
    run.write_provenance(config, {"syn4seg-ray": "0.1.0"})
    rows, found, truth = [], [], {}
    for i in range(planned or samples):
        index = len(names) - i % 2
        row = {"sample_id": f"hdig-{names[index - 1].replace(' ', '_')}-{i:05d}", "class_id": index, "batch": i // 4,
               "prompt": PROMPTS[i % len(PROMPTS)], "noise_seed": 2**61 + i}  # fmt: skip
        rows.append(row | {"bank": "hdig", "prompt_row": 0, "padding": False})
        if i < samples:
            sample, image = _sample(row, names, reasons.get(i, ""), i, side)
            found.append((sample, image))
            truth[row["sample_id"]] = Truth(
                image, _last(sample), row["prompt"], sample.record["reason"], names[index - 1]
            )
    write_parquet(run.plan, pa.Table.from_pylist(rows).cast(_plan(rows)))
    run.samples.write_images([Image(s.record["sample_id"], s.record["class"], s.record["batch"], pixels, {})
                              for s, pixels in found if pixels is not None])  # fmt: skip
    run.draw(0).write([sample for sample, _ in found])
    if manifest:
        write_manifest(run, 0)
    return run, config, truth


def _plan(rows: list[dict]) -> pa.Schema:
    kinds = {"class_id": pa.int32(), "batch": pa.int32(), "prompt_row": pa.int32()}
    return pa.schema([(f.name, kinds.get(f.name, f.type)) for f in pa.Table.from_pylist(rows).schema])


def _last(sample: Sample) -> np.ndarray | None:
    return next((sample.labels[s] for s in reversed(LABEL_STAGES) if s in sample.labels), None)


def _sample(
    row: dict, names: tuple[str, ...], reason: str, i: int, side: tuple[int, int]
) -> tuple[Sample, np.ndarray | None]:
    record = row | {
        "class": names[row["class_id"] - 1],
        "reason": reason,
        "audit": {"lambda_keep": 0.5, "nothing": float("nan")},
    }
    if reason.startswith("fault"):
        return Sample(record, {}), None
    stages = LABEL_STAGES[:-1] if reason else LABEL_STAGES
    labels = {s: label_of(100 * i + k, *side, len(names) + 1, row["class_id"]) for k, s in enumerate(stages)}
    image = noise(i, *side, 3)
    return Sample(
        record | {s: pixel_digest(x) for s, x in labels.items()} | {"image": pixel_digest(image)}, labels
    ), image


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


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
