"""Lineage: every sample is traced to prompt, seed and stages, in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from syn4seg.exports.formats import FORMATS
from syn4seg.exports.lineage import PROJECT_LICENCE, licences, public_name
from syn4seg.store.images import pixel_digest
from tests.shared_exports import FAULT, REJECTED, export


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
        assert (row["prompt"], row["reason"], row["class"], row["bank"]) == (known.prompt, known.reason, known.class_name, "hdig")
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
    assert public_name("stabilityai/stable-diffusion-3.5-large") == "stabilityai/stable-diffusion-3.5-large"
    assert (public_name("renderer"), public_name("/home/me/renderer"), public_name("./vit-b")) == (
        "renderer",
        "file renderer",
        "file vit-b",
    )
    common = {"generator": "stabilityai/stable-diffusion-3.5-large", "segmenter": "resnet50-deep", "refiner": "vit-h"}
    found = licences(common | {"prompts_by": "chat some-model"})
    assert found["stabilityai/stable-diffusion-3.5-large"] == "Stability AI Community License"
    assert found["vit-h"] == "Apache-2.0 (Segment Anything)"
    assert found["resnet50-deep"] == found["some-model"] == "unknown: see the model's own licence"
    ours = {"generator": "embedded-sd3", "segmenter": "embedded", "refiner": "file renderer", "prompts_by": "grammar"}
    assert [licence == PROJECT_LICENCE for licence in licences(ours).values()] == [True, True, False, True]
