"""The run directory: every path of a run, atomic writes, the plan, the records, the digest.

    RUN/config.yaml inputs.json provenance.json results.json metrics.jsonl prompts.parquet embeddings.safetensors plan.parquet
    RUN/images/CLASS/ID.png (and ID.json, if there is anything to say about how it was made)  quarantined/ID.json
    RUN/proposals/CLASS.jsonl (of a language model)  checkpoints/{base.safetensors,base.json}
    RUN/draws/K/support.json  support.safetensors  queries.json  manifest.parquet  checkpoints/ROW.safetensors
    RUN/draws/K/labels/CLASS/ID.png  stages/{draft,kept,relabeled}/CLASS/ID.png  records/CLASS/ID.json

Everything is written to a `.partial` file, synced and renamed. The record of a sample is written last: a record on disk
means that the sample is done in that draw, labelled or rejected with its reason. Nothing is deleted on start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import yaml

from syn4seg.config import UPSTREAM, Config, annotated, differences, fingerprint
from syn4seg.schema import LABEL_STAGES

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")


def checked_name(name: str, what: str) -> str:
    """`name` if it is safe as one part of a path.

    Raises:
        ValueError: it is empty, starts with a dot, or has other characters than letters, digits, space and ._+-
    """
    if not _SAFE.fullmatch(name):
        raise ValueError(f"{what} {name!r}: cannot be part of a file name; expected letters, digits, space or ._+-, "
                         "not starting with a dot; rename it")  # fmt: skip
    return name


# ------------------------------------------------------------------------------------------------- writing
def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is either absent, old or complete, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes plain JSON atomically; nan is written as null, as JSON has no nan."""
    write_atomically(path, (json.dumps(_plain(value), indent=1, sort_keys=True, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return bool(value) if isinstance(value, np.bool_) else value


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) RGB or uint8 (H, W) as PNG, atomically."""
    ordered = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    done, data = cv2.imencode(".png", np.ascontiguousarray(ordered))
    assert done and pixels.dtype == np.uint8, (path, pixels.dtype, pixels.shape)
    write_atomically(path, data.tobytes())


def read_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3) RGB or (H, W) of a PNG that `write_image` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    data = path.read_bytes() if path.is_file() else b""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None:
        raise ValueError(f"{path}: missing or damaged; delete it and run the same command again to make it anew")
    return np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels


def pixel_digest(pixels: np.ndarray) -> str:
    """Hash (32 hex digits) of shape and pixels; independent of how the file is compressed."""
    text = f"{pixels.dtype}{pixels.shape}".encode()
    return hashlib.blake2b(text + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()


def noise_seed(seed: int, sample_id: str) -> int:
    """The 62-bit integer that starts the diffusion noise of a sample: a hash of the run's seed and its id."""
    digest = hashlib.blake2b(f"{seed}\x1f{sample_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


# ------------------------------------------------------------------------------------------------ the paths
class Draw:
    """Paths of one support draw inside a run."""

    def __init__(self, root: Path):
        self.root = root
        self.support = root / "support.safetensors"
        self.support_json = root / "support.json"
        self.queries = root / "queries.json"
        self.manifest = root / "manifest.parquet"

    def label(self, stage: str, class_name: str, sample_id: str) -> Path:
        """Path of a label image; `stage` is one of `schema.LABEL_STAGES`."""
        assert stage in LABEL_STAGES, stage
        folder = self.root / ("labels" if stage == "label" else f"stages/{stage}")
        return folder / class_name / f"{sample_id}.png"

    def record(self, class_name: str, sample_id: str) -> Path:
        """Path of a sample's record; its existence means done."""
        return self.root / "records" / class_name / f"{sample_id}.json"

    def checkpoint(self, row: str) -> Path:
        """Path of the classifier trained for one ablation row."""
        return self.root / "checkpoints" / f"{row}.safetensors"

    def done(self) -> set[str]:
        """Ids of the samples that have a record and every file that the record names; a deleted file is made anew."""
        images = self.root.parent.parent / "images"
        found = set()
        for record in self.records():
            name, sample = record["class"], record["sample_id"]
            files = [images / name / f"{sample}.png"] if "image" in record else []
            files += [self.label(stage, name, sample) for stage in LABEL_STAGES if stage in record]
            if all(path.is_file() for path in files):
                found.add(sample)
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """Every record, sorted by sample id."""
        for path in sorted(self.root.glob("records/*/*.json"), key=lambda p: p.stem):
            yield json.loads(path.read_text())


class RunDir:
    """One run on disk."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.provenance = self.root / "provenance.json"
        self.inputs = self.root / "inputs.json"
        self.prompts = self.root / "prompts.parquet"
        self.embeddings = self.root / "embeddings.safetensors"
        self.plan = self.root / "plan.parquet"
        self.base = self.root / "checkpoints" / "base.safetensors"
        self.base_facts = self.root / "checkpoints" / "base.json"
        self.results = self.root / "results.json"
        self.metrics = self.root / "metrics.jsonl"

    def image(self, class_name: str, sample_id: str) -> Path:
        """Path of a synthetic image."""
        return self.root / "images" / class_name / f"{sample_id}.png"

    def quarantined(self, sample_id: str) -> Path:
        """Path of the note on a sample that could not be made or read."""
        return self.root / "quarantined" / f"{sample_id}.json"

    def quarantine(self) -> dict[str, dict[str, Any]]:
        """Notes of the quarantined samples by id."""
        return {p.stem: json.loads(p.read_text()) for p in sorted(self.root.glob("quarantined/*.json"))}

    def has_images(self) -> bool:
        """Whether every planned sample has an image or a note that it could not be made."""
        if not self.plan.is_file():
            return False
        made = {p.stem for p in self.root.glob("images/*/*.png")} | set(self.quarantine())
        return set(pq.read_table(self.plan, columns=["sample_id"])["sample_id"].to_pylist()) <= made

    def draw(self, number: int) -> Draw:
        """The paths of one support draw."""
        return Draw(self.root / "draws" / str(number))

    def log(self, **values: Any) -> None:
        """Appends one line to metrics.jsonl."""
        with self.metrics.open("a") as f:
            f.write(json.dumps(_plain(values), sort_keys=True) + "\n")

    def check(self, config: Config) -> None:
        """Checks that what is in the directory, if anything, belongs to the same science; writes nothing.

        The section `evaluation` may differ: scores are the last stage, and results.json says how they were made.

        Raises:
            ValueError: another science config made this directory (the differences are listed), or it is not a run.
        """
        if self.config.is_file():
            stored = Config.model_validate(yaml.safe_load(self.config.read_text()))
            changed = [d for d in differences(stored.science(), config.science()) if not d.startswith("evaluation.")]
            if changed:
                lines = "\n  ".join(changed)
                raise ValueError(f"--out {self.root}: made with another configuration:\n  {lines}\n"
                                 f"use another --out (and `--reuse {self.root}` to keep the stages that still fit)")  # fmt: skip
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise ValueError(f"--out {self.root}: not empty and not a run (no config.yaml); choose another folder")

    def open(self, config: Config) -> None:
        """`check`, then the directory and its config.yaml."""
        self.check(config)
        write_atomically(self.config, annotated(config).encode())

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Refuses other files under the names that the configuration gives.

        Args:
            inputs: `setup.inputs_of(config)`.

        Raises:
            ValueError: a file is not the one that the run was begun with.
        """
        if not self.inputs.is_file():
            return
        for key, digest in json.loads(self.inputs.read_text()).items():
            if inputs.get(key, digest) != digest:
                raise ValueError(f"{key}: other files are there than when {self.root} was begun; put the old ones back, "
                                 "or use another --out")  # fmt: skip

    def write_inputs(self, inputs: dict[str, str]) -> None:
        """Keeps the digests of the run's inputs, those known already and new ones."""
        known = json.loads(self.inputs.read_text()) if self.inputs.is_file() else {}
        write_json(self.inputs, inputs | known)

    def write_provenance(self, config: Config, versions: dict[str, str]) -> None:
        """What made the run: versions (of its first start) and the fingerprint of each stage; no user name, path or secret."""
        if self.provenance.is_file():
            versions = json.loads(self.provenance.read_text())["versions"]
        stages = {stage: fingerprint(config, stage) for stage in UPSTREAM}
        write_json(self.provenance, {"versions": versions, "fingerprints": stages})


INPUT_STAGES = {"synthesis.model": "images", "synthesis.root": "images", "base.checkpoint": "base", "segmenter.weights": "base",
                "data.root": "base"}  # fmt: skip
"""Inputs that are files, and the stage of `reuse` that is no longer the same when they change."""


def reuse(old: RunDir, new: RunDir, config: Config) -> list[str]:
    """Takes from another run every stage whose fingerprint is the same, as hard links (copies across file systems).

    Returns:
        Names of the stages taken: prompts, images, base.

    Raises:
        ValueError: `old` is not a run.
    """
    if not old.config.is_file():
        raise ValueError(f"--reuse {old.root}: not a run (no config.yaml); give the directory of an earlier run")
    before = Config.model_validate(yaml.safe_load(old.config.read_text()))
    theirs, ours = (json.loads(run.inputs.read_text()) if run.inputs.is_file() else {} for run in (old, new))
    other = {stage for key, stage in INPUT_STAGES.items() if theirs.get(key) != ours.get(key)}
    same = {
        s: fingerprint(before, s) == fingerprint(config, s) and s not in other for s in ("prompts", "images", "base")
    }
    taken = {
        "prompts": [old.prompts, old.embeddings, old.plan, *sorted(old.root.glob("proposals/*.jsonl"))],
        "images": sorted([*old.root.glob("images/*/*.png"), *old.root.glob("images/*/*.json")]),
        "base": [old.base, old.base_facts],
    }
    found = []
    for stage in (s for s in taken if same[s]):
        if stage == "images" and _bytes(new.plan) != _bytes(old.plan):  # a language model does not repeat its prompts
            continue
        for path in taken[stage]:
            if path.is_file():
                _link(path, new.root / path.relative_to(old.root))
        found.append(stage)
    return found


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        write_atomically(target, source.read_bytes())


# -------------------------------------------------------------------------------------------------- verify
def run_digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """Digest (64 hex digits) over (sample id, image digest, label digest or reason) rows, sorted."""
    total = hashlib.blake2b(digest_size=32)
    for row in sorted(rows):
        total.update("\x1f".join(row).encode() + b"\x1e")
    return total.hexdigest()
