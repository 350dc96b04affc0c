"""Finished rows in the run directory: the record with every audit, and a label that cannot be written costs its row."""

from __future__ import annotations

import json

import numpy as np

from actors.columns import FAULT
from actors.writer import Writer
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.store.images import read_image
from tests.actors.test_synthesizer import NAMES, Card, Careful, rows, run, synthesize  # noqa: F401 - a fixture


def test_the_record_of_a_sample_has_the_audit_of_its_image_beside_those_of_its_labels(run):  # noqa: F811
    out, audits = synthesize(run, Careful(8), rows(1, 4))
    label = np.zeros((4, 32, 32), np.uint8)
    said = {"labeling_audit": '{"kept": 1}', "refinement_audit": '{"sam": 2}'}
    given = out | dict.fromkeys(LABEL_COLUMNS, label) | {k: np.array([v] * 4, object) for k, v in said.items()}
    passed = Writer(str(run.root), 0, NAMES)(given)
    records = {r["sample_id"]: r for r in run.draw(0).records()}
    assert records["s10"]["audit"] == {"kept": 1, "sam": 2}
    assert records["s11"]["audit"] == audits[1] | {"kept": 1, "sam": 2}
    assert records["s12"]["audit"] == audits[2] and records["s12"]["reason"].startswith(FAULT)
    assert [json.loads(text) for text in passed["synthesis_audit"]] == audits
    assert read_image(run.image("star", "s11")).shape == (32, 32, 3)


def test_a_label_that_cannot_be_written_costs_its_row_alone(run):  # noqa: F811
    out, _ = synthesize(run, Card(8), rows(1, 3))
    labels = np.empty(3, object)
    labels[:] = [np.zeros((32, 32), np.uint8), np.full((32, 32), np.nan), np.zeros((32, 32), np.uint8)]
    said = {name: np.array(["{}"] * 3, object) for name in ("labeling_audit", "refinement_audit")}
    passed = Writer(str(run.root), 0, NAMES)(out | dict.fromkeys(LABEL_COLUMNS, labels) | said)
    assert [reason.partition(" (")[0] for reason in passed["reason"]] == ["", FAULT + "writing: ValueError: draft is float64", ""]
    note = json.loads(run.quarantined("s11").read_text())
    assert note["reason"] == passed["reason"][1] and "in _sample" in note["traceback"]
    assert run.draw(0).finished(["s10", "s11", "s12"]) == {"s10", "s11", "s12"}
