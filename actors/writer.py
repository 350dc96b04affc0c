"""Puts finished rows on disk: image, every stage's label, and last the record that says the sample is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.columns import FAULT, Batch, texts
from actors.synthesizer import notes_of, notes_path
from syn4seg.rundir import RunDir, pixel_digest, read_image, write_image, write_json
from syn4seg.schema import LABEL_STAGES


class Writer:
    """Idempotent: writing the same row twice leaves the same files. Passes on only ids, reasons and how images were made."""

    reads = ("sample_id", "class_id", "prompt", "noise_seed", "batch", "image", *LABEL_STAGES,
             "synthesis_audit", "labeling_audit", "refinement_audit", "reason", "traceback")  # fmt: skip
    adds = ()

    def __init__(self, run: str, draw: int, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names
        self.draw = self.run.draw(draw)

    def __call__(self, rows: Batch) -> Batch:
        for i in range(len(rows["sample_id"])):
            self._write({name: values[i] for name, values in rows.items()})
        return {"sample_id": rows["sample_id"], "reason": texts([str(r) for r in rows["reason"]]),
                "synthesis_audit": rows["synthesis_audit"]}  # fmt: skip

    def _write(self, row: dict) -> None:
        name, sample, reason = self.names[row["class_id"]], str(row["sample_id"]), str(row["reason"])
        record = {
            "sample_id": sample, "class": name, "class_id": int(row["class_id"]), "prompt": str(row["prompt"]),
            "noise_seed": int(row["noise_seed"]), "batch": int(row["batch"]), "reason": reason,
        }  # fmt: skip
        made = json.loads(row["synthesis_audit"])
        if reason.startswith(FAULT):
            record |= {"audit": made} if made else {}
            trace = str(row["traceback"])
            write_json(self.run.quarantined(sample), record | ({"traceback": trace} if trace else {}))
        else:
            image = np.asarray(row["image"])
            path = self.run.image(name, sample)
            _write_if_other(path, image, made)
            record["image"] = pixel_digest(image)
            for stage in LABEL_STAGES:
                label = np.asarray(row[stage])
                if stage != "label" or not reason:
                    write_image(self.draw.label(stage, name, sample), label)
                    record[stage] = pixel_digest(label)
            record["audit"] = made | json.loads(row["labeling_audit"]) | json.loads(row["refinement_audit"])
        write_json(self.draw.record(name, sample), record)


def _write_if_other(path: Path, image: np.ndarray, made: dict[str, Any]) -> None:
    """Writes what there is to say about an image, then the image, unless these very words and pixels are there."""
    if notes_of(path) != made:
        write_json(notes_path(path), made)
    try:
        if np.array_equal(read_image(path), image):
            return
    except ValueError:
        pass  # absent or damaged
    write_image(path, image)


class ImageWriter:
    """Writes images, and what there is to say about them, only: the end of `syn4seg synthesize`."""

    reads = ("sample_id", "class_id", "image", "synthesis_audit", "reason", "traceback")
    adds = ()

    def __init__(self, run: str, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names

    def __call__(self, rows: Batch) -> Batch:
        for i, reason in enumerate(rows["reason"]):
            name, sample = self.names[rows["class_id"][i]], str(rows["sample_id"][i])
            made = json.loads(rows["synthesis_audit"][i])
            if reason:
                note = {"sample_id": sample, "class": name, "reason": str(reason)} | ({"audit": made} if made else {})
                if trace := str(rows["traceback"][i]):
                    note["traceback"] = trace
                write_json(self.run.quarantined(sample), note)
            else:
                _write_if_other(self.run.image(name, sample), np.asarray(rows["image"][i]), made)
        return {"sample_id": rows["sample_id"], "reason": rows["reason"], "synthesis_audit": rows["synthesis_audit"]}
