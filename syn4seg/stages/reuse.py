"""Take over the stages of an earlier run whose fingerprints are the same (`--reuse`)."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from syn4seg.config.fingerprint import fingerprint
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.store.files import MAX_TABLE, exists, map_threads, read_bytes, write_atomically
from syn4seg.store.listing import list_files
from syn4seg.store.readback import Inputs, read_checked
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredImage
from syn4seg.store.seals import copy_seal

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath

INPUT_STAGES = {
    "synthesis.model": "images",
    "synthesis.root": "images",
    "synthesis.support": "images",
    "base.checkpoint": "base",
    "segmenter.weights": "base",
    "data.root": "base",
}
"""Inputs that are files, and the stage of `reuse` that is no longer the same when they change."""


def reuse(old: RunDir, new: RunDir, config: Config) -> list[str]:
    """Take from another run every stage whose fingerprint is the same, as hard links (copies across file systems and layouts).

    Returns:
        Names of the stages reused: prompts, images, base.

    Raises:
        UserError: `old` is not a run.
    """
    fitting = fitting_stages(old, new, config, read_checked(new.inputs, Inputs) if exists(new.inputs) else {})
    before = old.stored()
    same_layout = before is not None and before.layout == config.layout
    names = {
        "prompts": ["prompts.parquet", "embeddings.safetensors", "plan.parquet"]
        + [f"proposals/{name}" for name in list_files(old.root / "proposals")],
        "images": [f"{folder}/{name}" for folder in ("generators", "requests") for name in list_files(old.root / folder)]
        + ([f"images/{name}" for name in list_files(old.root / "images")] if same_layout else []),
        "base": ["checkpoints/base.safetensors", "checkpoints/base.json"],
    }
    for stage in fitting:
        map_threads(lambda name: _link(old.root / name, new.root / name), names[stage])
        if stage == "images" and not same_layout:
            _copy_images(old, new, config)
    return fitting


def fitting_stages(old: RunDir, new: RunDir, config: Config, inputs: Mapping[str, str]) -> list[str]:
    """Return the stages of another run that `reuse` would take over: prompts, images, base; write nothing.

    Args:
        inputs: digests of the new run's inputs, see `setup.digest_inputs`.

    Raises:
        UserError: `old` is not a run.
    """
    before = old.stored()
    if before is None:
        raise UserError(f"--reuse {old.root}: not a run (no config.yaml); give the directory of an earlier run")
    old_inputs = read_checked(old.inputs, Inputs) if exists(old.inputs) else {}
    changed = {stage for key, stage in INPUT_STAGES.items() if old_inputs.get(key) != inputs.get(key)}
    stages = ("prompts", "images", "base")
    fitting = [stage for stage in stages if stage not in changed and fingerprint(before, stage) == fingerprint(config, stage)]
    plan = old.plan if "prompts" in fitting and not exists(new.plan) else new.plan
    if _bytes(plan) != _bytes(old.plan):  # a language model does not repeat its prompts
        fitting = [stage for stage in fitting if stage != "images"]
    return fitting


def _copy_images(old: RunDir, new: RunDir, config: Config) -> None:
    """Write the images of a run in the layout of another."""
    from syn4seg.stages.setup import load_dataset

    names, places, plan = load_dataset(config)[1].index_names, old.samples.images(), old.read_plan()
    index = pc.index_in(plan["sample_id"], value_set=places["sample_id"].combine_chunks())
    rows = plan.append_column("place", places["image_at"].take(index)).filter(index.is_valid())
    rows = rows.filter(pc.invert(rows["padding"])).select(["sample_id", "class_id", "batch", "place"])
    for part in rows.to_batches(max_chunksize=64):
        images = [
            StoredImage(r["sample_id"], names[r["class_id"]], r["batch"], np.zeros(0), {}, r["place"]) for r in part.to_pylist()
        ]
        new.samples.write_images([image for image in old.samples.read_images(images) if image])


def _bytes(path: AnyPath) -> bytes:
    return read_bytes(path, MAX_TABLE) if exists(path) else b""


def _link(source: AnyPath, target: AnyPath) -> None:
    if exists(target) or not exists(source):
        return
    copy_seal(source, target)
    if isinstance(source, Path) and isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            return os.link(source, target)
    write_atomically(target, read_bytes(source, MAX_TABLE))
