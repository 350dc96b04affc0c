"""Keys of the entries of the stage cache: the content of an entry's inputs, the keys that it reads, and the code that makes it.

Keys are chained: an entry's key holds the keys of the entries that it is made of. What an entry reads of a section is the whole
section without the keys listed here, so a key that is added to a section counts from then on.
"""

from __future__ import annotations

from typing import Any

from syn4seg.config.fingerprint import fingerprint, section_values, source_digest
from syn4seg.config.tree import Config
from syn4seg.labeling.grabcut import WITHOUT_WEIGHTS
from syn4seg.stages.reuse import INPUT_STAGES
from syn4seg.stages.setup import digest_inputs
from syn4seg.stages.similarity import feature_side
from syn4seg.trials.cache import RUNS, key_hash

SAMS = (
    *("syn4seg.models.sam", "syn4seg.models.sam_mobile", "syn4seg.models.sam_edge"),
    *("syn4seg.models.sam_transformers", "syn4seg.models.refiners"),
)
CODE = {
    RUNS: ("syn4seg.prompts", "syn4seg.models", "syn4seg.data", "syn4seg.segmenter", "syn4seg.stages.plan", "syn4seg.stages.base"),
    "support": ("syn4seg.data", "syn4seg.stages.setup"),
    "real": ("syn4seg.segmenter.network", "syn4seg.segmenter.backbones", "syn4seg.segmenter.semantic_networks", "syn4seg.data"),
    "registration": ("syn4seg.segmenter", "syn4seg.labeling.prototypes", "syn4seg.stages.support", "syn4seg.stages.classifiers"),
    "dense": (
        *("syn4seg.segmenter.network", "syn4seg.segmenter.backbones", "syn4seg.segmenter.semantic_networks"),
        *("syn4seg.data.canvas", "syn4seg.stages.labels"),
    ),
    "features": (
        *("syn4seg.segmenter.feature_networks", "syn4seg.segmenter.backbones", "syn4seg.segmenter.pretrained"),
        *("syn4seg.segmenter.efficientnet", "syn4seg.segmenter.resnet", "syn4seg.segmenter.timm_models"),
    ),
    "measured": (
        *("syn4seg.segmenter.network", "syn4seg.labeling.prototypes", "syn4seg.data.canvas", "syn4seg.stages.similarity"),
    ),
    "draft": ("syn4seg.segmenter.network", "syn4seg.labeling.filtering", "syn4seg.stages.labels"),
    "kept": ("syn4seg.labeling.components", "syn4seg.labeling.filtering", "syn4seg.labeling.prototypes", "syn4seg.stages.labels"),
    "relabeled": ("syn4seg.labeling.relabeling", "syn4seg.labeling.prototypes", "syn4seg.stages.labels"),
    "embedding": (*SAMS, "syn4seg.models.attention"),
    "masks": (*SAMS, "syn4seg.labeling.components", "syn4seg.labeling.grabcut", "syn4seg.labeling.refinement"),
    "label": ("syn4seg.labeling.components", "syn4seg.labeling.refinement", "syn4seg.stages.labels"),
    "classifier": ("syn4seg.segmenter", "syn4seg.stages.classifiers", "syn4seg.trials.trial", "syn4seg.trials.labels"),
}
"""Kind of an entry -> the modules whose code makes it."""

FEATURES = ("features", "feature_weights", "feature_size")
"""Keys of `labeling` that name another network, which comes in as its weights' digest (`feature_values`)."""
ELSEWHERE = ("lambda_keep", "base_prototype_images", *FEATURES)
"""Keys of `labeling` that come in by their effect: as thresholds, and as the prototypes of the registration."""
DRAFTING = ("mask_others", "target_logit", "seed_share")
"""Keys of `labeling` that the draft reads."""
RELABELING = ("beta", "theta", "min_target", "max_target")
"""Keys of `labeling` that filtering does not read."""
MODEL = ("model",)
"""The key of `refinement` that comes in as the digest of SAM's weights."""
REDRAWING = ("band_width", "min_agreement")
"""Keys of `refinement` that SAM's masks do not depend on."""
HINTING = ("margin", "hints")
"""Keys of `refinement` that SAM's embeddings do not depend on."""
SYNTHETIC = ("trains", "rows", "synthetic_weight", "confidence_weight", "replay_images")
"""Keys of `novel` that round 0 does not read: it sees no synthetic image; replayed images come in by their content."""
FIGURES = ("rows", "queries", "background_in_base", "mean", "baselines", "controls", "by_name", "masks")
"""Keys of `evaluation` that choose the queries, which come in by their content, or the figures that a table shows."""
DRAWN = ("draws", "first_draw", "val_images", "root")
"""Keys of `data` that change no support draw; the root comes in by its digest."""


def entry_key(kind: str, *parts: Any) -> str:
    """Return the key of an entry: a hash of the code that makes it and of everything that it is made of.

    Args:
        kind: of the entry, one of `CODE`.
        parts: keys of other entries, digests, and values of sections, as plain JSON.
    """
    return key_hash([source_digest(*CODE[kind]), *parts])


def run_key(config: Config) -> str:
    """Return the key of a run: of everything that prompts, images and base checkpoint depend on, input files included."""
    inputs = {key: digest for key, digest in digest_inputs(config).items() if key in INPUT_STAGES}
    return entry_key(RUNS, fingerprint(config, "images"), fingerprint(config, "base"), inputs)


def support_key(config: Config, draw: int) -> list[Any]:
    """Return the parts of the key of a support draw."""
    data = section_values(config.data, without=DRAWN)
    return [data, config.seed, draw, digest_inputs(config).get("data.root")]


def label_keys(
    config: Config, dense: str, registration: str, images: list[Any], limits: list[float], sam: str, measured: str
) -> dict[str, str]:
    """Return the keys of the label columns of some images, and of SAM's masks, by kind.

    Args:
        dense: key of the features of the images.
        registration: key of round 0.
        images: target and shape of each.
        limits: lambda_keep of each, as a number.
        sam: key of SAM's answers, see `sam_key`.
        measured: key of the prototypes of another network; "" where the segmenter's count.
    """
    labeling, refinement = config.labeling, config.refinement
    drafting = {key: getattr(labeling, key) for key in DRAFTING}
    draft = entry_key("draft", dense, registration, images, drafting)
    kept = entry_key("kept", draft, limits, measured, section_values(labeling, without=(*ELSEWHERE, *RELABELING)))
    relabeled = entry_key("relabeled", kept, section_values(labeling, without=ELSEWHERE))
    redrawing = () if refinement.model in WITHOUT_WEIGHTS else REDRAWING  # GrabCut runs inside the band
    masks = entry_key("masks", relabeled, sam, section_values(refinement, without=(*MODEL, *redrawing)))
    label = entry_key("label", masks, section_values(refinement, without=MODEL))
    return {"draft": draft, "kept": kept, "relabeled": relabeled, "masks": masks, "label": label}


def sam_key(config: Config) -> str:
    """Return the key of SAM's answers: its weights, and how many images share a pass."""
    weights = digest_inputs(config).get("refinement.model", config.refinement.model)
    return key_hash([weights, section_values(config.refinement, without=(*MODEL, *REDRAWING, *HINTING))])


def feature_values(config: Config) -> dict[str, Any]:
    """Return what the features of `labeling.features` depend on besides an image: its weights' digests, or names, and sizes."""
    labeling, digests = config.labeling, digest_inputs(config)
    named = {"features": labeling.feature_backbone, "feature_weights": labeling.feature_weights}
    files = {key: digests.get(f"labeling.{key}", value) for key, value in named.items()}
    return files | {"size": feature_side(config)}


def registration_values(config: Config) -> dict[str, Any]:
    """Return the keys that round 0 reads itself."""
    return section_values(config.novel, without=SYNTHETIC) | {"base_in_support": config.data.base_in_support}


def query_values(config: Config) -> dict[str, Any]:
    """Return the keys that a score depends on besides the queries themselves."""
    return section_values(config.evaluation, without=FIGURES)
