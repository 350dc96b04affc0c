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
from syn4seg.store.files import exists, to_json
from syn4seg.store.listing import list_files
from syn4seg.store.readback import Facts, Provenance, read_checked

if TYPE_CHECKING:
    from syn4seg.store.rundir import RunDir

STAGES = tuple(stage for stage in UPSTREAM if stage != "scores")
"""The stages that a sample depends on, and whose fingerprints its row has."""

_COLUMNS = (
    "sample_id bank draw class class_id split verdict reason prompt noise_seed batch label_stage image_digest label_digest "
    "prompts_by generator generator_revision generator_facts segmenter refiner"
).split()
_TYPES = {"draw": pa.int32(), "class_id": pa.int32(), "noise_seed": pa.int64(), "batch": pa.int32()}
_FINGERPRINTS = [f"{stage}_fingerprint" for stage in STAGES]
LINEAGE = pa.schema([(n, _TYPES.get(n, pa.string())) for n in (*_COLUMNS, *_FINGERPRINTS, "config_digest", "audit")])
"""`bank` is that of the prompt: hdig, class_name, or "real". `verdict` is accepted, rejected, real, fault or damaged; the last two
have no files, and an empty `split`. `label_stage` is the label column that is exported: "label", "relabeled" for a rejected
sample, "annotation" for a real image. `generator_facts` and `audit` are JSON."""

PACKAGED = ("renderer", "embedded-sd3", "embedded-sam", "embedded", "grammar")
"""What comes with this project: image models, SAM, segmenter, and the prompt grammar."""
PROJECT_LICENCE = "Apache-2.0 (part of Syn4Seg on Ray)"
UNKNOWN = "unknown: see the model's own licence"
LICENCES = (
    (r"stabilityai/stable-diffusion-3\.5-.*", "Stability AI Community License"),
    (r"vit-[blh]", "Apache-2.0 (Segment Anything)"),
    (r"imported images", "that of the imported images"),
)


def verdict_of(reason: str) -> str:
    """Return accepted, rejected or fault, by the reason of a record."""
    if not reason:
        return "accepted"
    return "fault" if reason.startswith(FAULT) else "rejected"


def public_name(model: str) -> str:
    """Return the name of a model without the path to it: names, hub ids and package.module:factory stay as they are."""
    if re.fullmatch(r"[\w-]+(/[\w.-]+)?|[\w.]+:\w+", model):
        return model
    return "file " + re.split(r"[/\\]", model.rstrip("/\\"))[-1]


def _generator(config: Config) -> str:
    made = config.synthesis
    if not made.from_prompts:
        return "imported images"
    return made.generator if made.source == "api" else public_name(made.model)


def shared_columns(run: RunDir, config: Config) -> dict[str, str]:
    """Return the columns of `LINEAGE` that are the same for every sample of a run."""
    provenance = read_checked(run.provenance, Provenance) if exists(run.provenance) else {}
    notes = sorted(name for name in list_files(run.root / "generators") if name.endswith(".json"))
    facts = [read_checked(run.root / "generators" / name, Facts) for name in notes]
    generator = _generator(config)
    revisions = sorted({str(fact["revision"]) for fact in facts if "revision" in fact})
    if not revisions and generator in PACKAGED:
        revisions = [f"syn4seg-ray {provenance.get('versions', {}).get('syn4seg-ray', 'of an unknown version')}"]
    weights = "" if config.segmenter.weights is None else f" with {public_name(config.segmenter.weights)}"
    agent = config.prompts.agent if config.prompts.llm is None else f"{config.prompts.agent} {public_name(config.prompts.llm)}"
    columns = {
        "prompts_by": agent if config.synthesis.from_prompts else "file names",
        "generator": generator,
        "generator_revision": ", ".join(revisions),
        "generator_facts": json.dumps(facts, sort_keys=True),
        "segmenter": public_name(config.network) + weights,
        "refiner": public_name(config.refinement.model),
        "config_digest": config_digest(config),
    }
    prints = provenance.get("fingerprints", {})
    return columns | {f"{stage}_fingerprint": str(prints.get(stage, "")) for stage in STAGES}


def lineage_row(record: dict[str, Any], common: dict[str, str], draw: int, split: str, stage: str) -> dict[str, Any]:
    """Return a row of `LINEAGE`.

    Args:
        record: as `GallerySample.record` has it.
        common: of `shared_columns`.
        split: empty for a sample without files.
        stage: the label that is exported, or empty.
    """
    copied = {key: record.get(key) for key in ("sample_id", "class", "class_id", "reason", "prompt", "noise_seed", "batch")}
    exported = {"draw": draw, "split": split, "verdict": verdict_of(record["reason"]), "label_stage": stage}
    digests = {"image_digest": record.get("image"), "label_digest": record.get(stage)}
    return copied | common | exported | digests | {"audit": json.dumps(to_json(record.get("audit", {})), sort_keys=True)}


def licences(common: dict[str, str]) -> dict[str, str]:
    """Return the licence by model, of everything that made the samples, as far as it is known."""
    agent = common["prompts_by"].rpartition(" ")[2]
    names = [common["generator"], common["segmenter"], common["refiner"], *([agent] if agent != "names" else [])]
    return {name: _licence(name) for name in dict.fromkeys(names)}


def _licence(name: str) -> str:
    if name in PACKAGED:
        return PROJECT_LICENCE
    return next((licence for pattern, licence in LICENCES if re.fullmatch(pattern, name)), UNKNOWN)
