"""Puts finished rows on disk: image, every stage's label, and last the record that says the sample is done."""

from __future__ import annotations

import json

import numpy as np

from actors.columns import FAULT, Batch, texts
from syn4seg.rundir import RunDir, pixel_digest, write_image, write_json
from syn4seg.schema import LABEL_STAGES


class Writer:
    """Idempotent: writing the same row twice leaves the same files. Passes on only ids and reasons."""

    reads = ("sample_id", "class_id", "prompt", "noise_seed", "batch", "image", *LABEL_STAGES,
             "labeling_audit", "refinement_audit", "reason")  # fmt: skip
    adds = ()

    def __init__(self, run: str, draw: int, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names
        self.draw = self.run.draw(draw)

    def __call__(self, rows: Batch) -> Batch:
        for i in range(len(rows["sample_id"])):
            self._write({name: values[i] for name, values in rows.items()})
        return {"sample_id": rows["sample_id"], "reason": texts([str(r) for r in rows["reason"]])}

    def _write(self, row: dict) -> None:
        name, sample, reason = self.names[row["class_id"]], str(row["sample_id"]), str(row["reason"])
        record = {
            "sample_id": sample, "class": name, "class_id": int(row["class_id"]), "prompt": str(row["prompt"]),
            "noise_seed": int(row["noise_seed"]), "batch": int(row["batch"]), "reason": reason,
        }  # fmt: skip
        if reason.startswith(FAULT):
            write_json(self.run.quarantined(sample), record)
        else:
            image = np.asarray(row["image"])
            path = self.run.image(name, sample)
            if not path.is_file():
                write_image(path, image)
            record["image"] = pixel_digest(image)
            for stage in LABEL_STAGES:
                label = np.asarray(row[stage])
                if stage != "label" or not reason:
                    write_image(self.draw.label(stage, name, sample), label)
                    record[stage] = pixel_digest(label)
            record["audit"] = json.loads(row["labeling_audit"]) | json.loads(row["refinement_audit"])
        write_json(self.draw.record(name, sample), record)


class ImageWriter:
    """Writes images only: the end of `syn4seg synthesize`."""

    reads = ("sample_id", "class_id", "image", "reason")
    adds = ()

    def __init__(self, run: str, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names

    def __call__(self, rows: Batch) -> Batch:
        for i, reason in enumerate(rows["reason"]):
            path = self.run.image(self.names[rows["class_id"][i]], str(rows["sample_id"][i]))
            if not reason and not path.is_file():
                write_image(path, np.asarray(rows["image"][i]))
        return {"sample_id": rows["sample_id"], "reason": rows["reason"]}
