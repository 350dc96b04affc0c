"""Where an exported sample comes from: one flat row per sample, the same columns in every format; and the licences of the models.

No row names a path of the machine: of a model that lies in a folder or file, only that one's own name is kept.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from syn4seg.config.fingerprint import UPSTREAM, config_digest
from syn4seg.config.tree import Config
from syn4seg.schema import FAULT
from syn4seg.store.files import exists, listing, read_json, to_json

if TYPE_CHECKING:
    from syn4seg.store.rundir import RunDir

STAGES = tuple(stage for stage in UPSTREAM if stage != "scores")
"""The stages that a sample depends on, and whose fingerprints its row has."""

LINEAGE = pa.schema(
    [
        ("sample_id", pa.string()),
        ("draw", pa.int32()),
        ("class", pa.string()),
        ("class_id", pa.int32()),
        ("split", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("prompt", pa.string()),
        ("noise_seed", pa.int64()),
        ("batch", pa.int32()),
        ("label_stage", pa.string()),
        ("image_digest", pa.string()),
        ("label_digest", pa.string()),
        ("prompts_by", pa.string()),
        ("generator", pa.string()),
        ("generator_revision", pa.string()),
        ("generator_facts", pa.string()),
        ("segmenter", pa.string()),
        ("refiner", pa.string()),
        *((f"{stage}_fingerprint", pa.string()) for stage in STAGES),
        ("config_digest", pa.string()),
        ("audit", pa.string()),
    ]
)
"""`verdict` is accepted, rejected, fault or damaged; the last two have no files, and an empty `split`. `label_stage` is the
label column that is exported: "label", or "relabeled" for a rejected sample. `generator_facts` and `audit` are JSON."""

PACKAGED = ("renderer", "embedded-sd3", "embedded-sam", "embedded", "grammar")
"""What comes with this project: image models, SAM, segmenter, and the prompt grammar."""
OURS = "Apache-2.0 (part of Syn4Seg on Ray)"
UNKNOWN = "unknown: see the model's own licence"
LICENCES = (
    (r"stabilityai/stable-diffusion-3\.5-.*", "Stability AI Community License"),
    (r"vit-[blh]", "Apache-2.0 (Segment Anything)"),
    (r"imported images", "that of the imported images"),
)


def verdict(reason: str) -> str:
    """accepted, rejected or fault, by the reason of a record."""
    if not reason:
        return "accepted"
    return "fault" if reason.startswith(FAULT) else "rejected"


def public(model: str) -> str:
    """A model's name without the path to it: names, hub ids and package.module:factory stay as they are."""
    if re.fullmatch(r"[\w-]+(/[\w.-]+)?|[\w.]+:\w+", model):
        return model
    return "file " + re.split(r"[/\\]", model.rstrip("/\\"))[-1]


def shared(run: RunDir, config: Config) -> dict[str, str]:
    """The columns of `LINEAGE` that are the same for every sample of a run."""
    provenance = read_json(run.provenance) if exists(run.provenance) else {}
    notes = sorted(name for name in listing(run.root / "generators") if name.endswith(".json"))
    facts = [read_json(run.root / "generators" / name) for name in notes]
    generator = public(config.synthesis.model) if config.synthesis.source == "generate" else "imported images"
    revisions = sorted({str(fact["revision"]) for fact in facts if "revision" in fact})
    if not revisions and generator in PACKAGED:
        revisions = [f"syn4seg-ray {provenance.get('versions', {}).get('syn4seg-ray', 'of an unknown version')}"]
    weights = "" if config.segmenter.weights is None else f" with {public(config.segmenter.weights)}"
    agent = config.prompts.agent if config.prompts.llm is None else f"{config.prompts.agent} {public(config.prompts.llm)}"
    found = {
        "prompts_by": agent if config.synthesis.source == "generate" else "file names",
        "generator": generator,
        "generator_revision": ", ".join(revisions),
        "generator_facts": json.dumps(facts, sort_keys=True),
        "segmenter": public(config.segmenter.backbone) + weights,
        "refiner": public(config.refinement.model),
        "config_digest": config_digest(config),
    }
    prints = provenance.get("fingerprints", {})
    return found | {f"{stage}_fingerprint": str(prints.get(stage, "")) for stage in STAGES}


def row_of(record: dict[str, Any], common: dict[str, str], draw: int, split: str, stage: str) -> dict[str, Any]:
    """A row of `LINEAGE`.

    Args:
        record: as `Shown.record` has it.
        common: of `shared`.
        split: empty for a sample without files.
        stage: the label that is exported, or empty.
    """
    known = {key: record.get(key) for key in ("sample_id", "class", "class_id", "reason", "prompt", "noise_seed", "batch")}
    return (
        known
        | common
        | {
            "draw": draw,
            "split": split,
            "verdict": verdict(record["reason"]),
            "label_stage": stage,
            "image_digest": record.get("image"),
            "label_digest": record.get(stage),
            "audit": json.dumps(to_json(record.get("audit", {})), sort_keys=True),
        }
    )


def licences(common: dict[str, str]) -> dict[str, str]:
    """Licence by model, of everything that made the samples, as far as it is known."""
    agent = common["prompts_by"].rpartition(" ")[2]
    names = [common["generator"], common["segmenter"], common["refiner"], *([agent] if agent != "names" else [])]
    return {name: _licence(name) for name in dict.fromkeys(names)}


def _licence(name: str) -> str:
    if name in PACKAGED:
        return OURS
    return next((licence for pattern, licence in LICENCES if re.fullmatch(pattern, name)), UNKNOWN)
