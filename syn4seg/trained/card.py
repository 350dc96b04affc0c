"""The card of a model: README.md of its folder."""

from __future__ import annotations

from typing import Any

import yaml

from syn4seg.exports.card import escape, table
from syn4seg.segmenter.model_folder import FILES, ModelConfig
from syn4seg.terminal import format_percent

SCORES = {"base": "base mIoU", "novel": "novel mIoU", "mean": "mean", "harmonic": "harmonic mean"}
USE = {
    "safetensors": '```python\nimport syn4seg\n\nmodel = syn4seg.load("DIR")   # this folder; no run, no Ray\n'
    'mask = model("photo.jpg")     # uint8 (H, W): class indices\n```\n\nOr `syn4seg predict DIR IMAGES... --to masks`.',
    "onnx": '```python\nimport numpy, onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
    'probabilities = session.run(None, {"image": image[None]})[0]   # image: uint8 (H, W, 3) RGB\n'
    "mask = probabilities[0].argmax(0).astype(numpy.uint8)\n```",
    "pt2": '```python\nimport torch\n\nmodel = torch.export.load("model.pt2").module()\n'
    "mask = model(image[None])[0].argmax(0)   # image: torch.uint8 (H, W, 3) RGB\n```",
}


def card(config: ModelConfig) -> str:
    """Return README.md of a model."""
    facts = config.provenance
    free = all(str(licence).startswith("Apache-2.0") for licence in facts["licences"].values())
    head = {
        "pipeline_tag": "image-segmentation",
        "license": "apache-2.0" if free else "other",
        "tags": ["semantic-segmentation", "few-shot-segmentation", "synthetic"],
    }
    novel = [entry.name for entry in config.classes if entry.kind == "novel"]
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {escape(facts['run'])}: a segmenter with {len(config.classes) - 1} classes, {len(novel)} of them novel",
        "",
        f"Trained by Syn4Seg on Ray: row {escape(facts['row'])}, support draw {facts['draw']} of {facts['draws']} (not chosen by "
        f"its scores), {facts['shots']} annotated image(s) per novel class.",
        "",
        "## Use",
        "",
        USE[config.weights.format],
        "",
        *_images(config),
        "",
        "## Classes",
        "",
        *table(
            ("mask value", "class", "kind", "id in the data set", "IoU in %"),
            ((i, c.name, c.kind, c.id, _percent(facts["per_class"], c.name)) for i, c in enumerate(config.classes)),
        ),
        "",
        *_training(facts),
        "",
        "## Scores",
        "",
        *_scores(facts),
        "",
        "## Licences of the parts",
        "",
        *table(("part", "licence"), facts["licences"].items()),
        "",
        "## Fingerprint of the run",
        "",
        *table(("stage", "hash"), [*facts["fingerprints"].items(), ("configuration", facts["config_digest"])]),
        "",
        "Versions: " + ", ".join(f"{escape(k)} {escape(v)}" for k, v in facts["versions"].items() if v) + ".",
        "",
    ]
    return "\n".join(lines)


def _images(config: ModelConfig) -> list[str]:
    canvas = config.canvas
    brought = (
        f"the long side is brought to {canvas.size} pixels (by area where it shrinks) and the rest of the square is filled with "
        "(124, 116, 104)"
        if canvas.kind == "plain"
        else f"the long side is brought to {canvas.size} pixels, sides are floored to multiples of 8, and the rest is black"
    )
    where = "Done by the program that loads it" if config.weights.format == "safetensors" else "Inside of the graph"
    return [
        f"{where}: {brought}; RGB is divided by 255 and normalised (`mean` and `std` in config.json); the scores are brought back "
        f"to the pixels of the image. The network is {escape(backbone_name(config))}; every weight of it is in "
        f"{FILES[config.weights.format]}."
    ]


def backbone_name(config: ModelConfig) -> str:
    """Return what a person calls the backbone."""
    backbone = config.network.backbone
    return backbone if isinstance(backbone, str) else backbone.title


def _training(facts: dict[str, Any]) -> list[str]:
    counts = facts["synthetic_images"]
    made = "no synthetic image" if not counts else f"{sum(counts.values())} synthetic images by {escape(facts['generator'])}"
    if facts["generator_revision"]:
        made += f" ({escape(facts['generator_revision'])})"
    lines = [
        "## Training",
        "",
        f"Data set {escape(facts['data'])}, fold {escape(facts['fold'])}; backbone {escape(facts['backbone'])}; base stage "
        f"{escape(facts['base_stage'] or 'unknown')}; the novel stage trained the {escape(facts['trains'])}; {made}"
        + (f", prompts by {escape(facts['prompts_by'])}, boundaries by {escape(facts['refiner'])}." if counts else "."),
        "",
    ]
    rows = [(name, ", ".join(ids), counts.get(name, 0)) for name, ids in facts["support"].items()]
    return lines + table(("novel class", "support images", "synthetic images"), rows)


def _scores(facts: dict[str, Any]) -> list[str]:
    if not facts["scores"]:
        return ["Not evaluated yet."]
    if not any(facts["scores"][key]["n"] for key in ("base", "novel")):
        return ["None: there was no query with a mask."]
    rows = [(title, _percent(facts["scores"], key)) for key, title in SCORES.items()]
    about = f"In %, mean ± standard deviation over {facts['draws']} support draw(s) of the run, counted on "
    return [f"{about}{escape(facts['scored_on'])}, protocol {escape(facts['protocol'])}.", "", *table(("figure", "value"), rows)]


def _percent(spreads: dict[str, Any] | None, key: str) -> str:
    return format_percent(spreads[key]) if spreads and key in spreads else "-"
