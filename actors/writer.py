"""Puts finished rows into the run directory: every stage's label, and with them the record that says the sample is done."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from actors import deadline
from actors.columns import FAULT, Batch, string_column, summarize_error
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.store.files import write_json
from syn4seg.store.images import pixel_digest
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredSample

ACCOUNT = ("synthesis_audit", "labeling_audit", "refinement_audit", "reason", "traceback")


class Writer:
    """Write rows; the same row twice leaves the same files. Only ids, reasons and how images were generated are passed on."""

    reads = ("sample_id", "class_id", "prompt", "noise_seed", "batch", "image_digest", *LABEL_COLUMNS, *ACCOUNT)
    adds = ()

    def __init__(self, run: str, draw: int, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names
        self.draw = self.run.draw(draw)

    def __call__(self, rows: Batch) -> Batch:
        records = [{name: values[i] for name, values in rows.items()} for i in range(len(rows["sample_id"]))]
        samples = []
        for row in records:
            deadline.tick()
            try:
                sample = self._sample(row)
            except Exception as error:  # noqa: BLE001 - a label that cannot be written costs its row
                line, trace = summarize_error(error)
                row |= {"reason": f"{FAULT}writing: {line}", "traceback": trace}
                sample = self._sample(row)
            if sample.record["reason"].startswith(FAULT):  # the note first: without it the record would count for nothing
                _write_note(self.run, sample.record, row["traceback"])
            samples.append(sample)
        deadline.pause()
        self.draw.write(samples)
        return _passed_on(rows | {"reason": string_column([row["reason"] for row in records])})

    def _sample(self, row: dict[str, Any]) -> StoredSample:
        reason, labels = str(row["reason"]), {}
        record: dict[str, Any] = {
            "sample_id": str(row["sample_id"]),
            "class": self.names[row["class_id"]],
            "class_id": int(row["class_id"]),
            "prompt": str(row["prompt"]),
            "noise_seed": int(row["noise_seed"]),
            "batch": int(row["batch"]),
            "reason": reason,
        }
        audit = json.loads(row["synthesis_audit"])
        if reason.startswith(FAULT):
            return StoredSample(record | ({"audit": audit} if audit else {}), {})
        record["image"] = str(row["image_digest"])
        for column in LABEL_COLUMNS if not reason else LABEL_COLUMNS[:-1]:
            labels[column] = np.asarray(row[column])
            if labels[column].dtype != np.uint8 or labels[column].ndim != 2:
                raise ValueError(f"{column} is {labels[column].dtype} {labels[column].shape}; expected uint8 (H, W)")
            record[column] = pixel_digest(labels[column])
        record["audit"] = audit | json.loads(row["labeling_audit"]) | json.loads(row["refinement_audit"])
        return StoredSample(record, labels)


class QuarantineWriter:
    """Write a note on every row that is quarantined; the images are stored already. The end of `syn4seg synthesize`."""

    reads = ("sample_id", "class_id", "synthesis_audit", "reason", "traceback")
    adds = ()

    def __init__(self, run: str, names: tuple[str, ...]):
        self.run, self.names = RunDir(run), names

    def __call__(self, rows: Batch) -> Batch:
        for i, reason in enumerate(rows["reason"]):
            if reason:
                audit = json.loads(rows["synthesis_audit"][i])
                note = {"sample_id": str(rows["sample_id"][i]), "class": self.names[rows["class_id"][i]], "reason": str(reason)}
                _write_note(self.run, note | ({"audit": audit} if audit else {}), rows["traceback"][i])
        return _passed_on(rows)


def _write_note(run: RunDir, note: dict[str, Any], trace: object) -> None:
    write_json(run.quarantined(note["sample_id"]), note | ({"traceback": str(trace)} if trace else {}))


def _passed_on(rows: Batch) -> Batch:
    reasons = string_column([str(reason) for reason in rows["reason"]])
    return {"sample_id": rows["sample_id"], "reason": reasons, "synthesis_audit": rows["synthesis_audit"]}
