"""A trained model of the embedded world's base classes, and folders of annotated images of its novel ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from syn4seg.data.datasets import EmbeddedDataset, fold_of
from syn4seg.segmenter.model_folder import CONFIG, FILES, ModelCanvas, ModelClass, ModelConfig, ModelWeights
from syn4seg.segmenter.network import read_segmenter, save_segmenter, shape_of
from syn4seg.stages.setup import shipped_base
from syn4seg.store.files import write_atomically

FOLD = fold_of(EmbeddedDataset(), 0)
BASE = tuple(FOLD.names[k - 1] for k in FOLD.base)
NOVEL = tuple(FOLD.names[k - 1] for k in FOLD.novel)
QUICK = (
    "placement.runner=inline",
    "synthesis.images_per_class=3",
    "prompts.bank_size=3",
    "synthesis.batch=6",
    "novel.steps=20",
    "novel.inverted_cells=20",
)


def write_base_model(folder: Path) -> Path:
    """Write the packaged base network of fold 0 as the folder of a model with 12 classes, none of them novel."""
    segmenter, shape, _ = read_segmenter(shipped_base(0))
    path = folder / FILES["safetensors"]
    save_segmenter(segmenter, path, backbone=shape.backbone, facts={}, whole=True)
    kinds = [("background", "background", 0), *((name, "base", k) for name, k in zip(BASE, FOLD.base, strict=True))]
    config = ModelConfig(
        weights=ModelWeights(format="safetensors", sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
        network=shape_of(segmenter, shape.backbone, whole=True),
        canvas=ModelCanvas(size=64, kind="plain"),
        classes=tuple(ModelClass.model_validate({"name": n, "kind": k, "id": i, "color": (i, 9, 9)}) for n, k, i in kinds),
        provenance={"run": "packaged", "row": "base", "draw": 0},
    )
    write_atomically(folder / CONFIG, config.model_dump_json(exclude_none=True).encode())
    return folder


def write_data(folder: Path, *names: str, shots: int = 2, queries: int = 0) -> Path:
    """Write images whose masks show the classes `names` alone (1, 2, ...): `shots` that show each, and queries with val.txt."""
    world, chosen = EmbeddedDataset(400, 100), dict[str, None]()
    ids = [FOLD.names.index(name) + 1 for name in names]
    for k in ids:
        alone = (s for s in world.train if world.areas(s).get(k, 0) > 0.05 and sum(i in world.areas(s) for i in ids) == 1)
        chosen |= dict.fromkeys(s for s, _ in zip(alone, range(shots), strict=False))
    table = np.zeros(256, np.uint8)
    table[ids] = np.arange(1, 1 + len(ids))
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True)
    val = [s for s in world.val if world.areas(s).keys() & set(ids)][:queries]
    for sample in [*chosen, *val]:
        Image.fromarray(world.image(sample)).save(folder / "images" / f"{sample}.png")
        Image.fromarray(table[world.mask(sample)]).save(folder / "masks" / f"{sample}.png")
    if queries:
        (folder / "val.txt").write_text("\n".join(val))
    (folder / "classes.json").write_text(json.dumps({"classes": list(names)}))
    return folder
