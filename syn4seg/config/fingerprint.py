"""Fingerprints: a hash of the keys that the result of a stage depends on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from syn4seg.config.tree import Config

STAGE_KEYS = {
    "prompts": (
        "seed",
        "data.source",
        "data.root",
        "data.fold",
        "prompts",
        "synthesis.source",
        "synthesis.root",
        "synthesis.model",
        "synthesis.images_per_class",
        "synthesis.class_name_bank",
        "synthesis.batch",
    ),
    "images": ("synthesis",),
    "base": (
        "seed",
        "data.source",
        "data.root",
        "data.fold",
        "data.train_images",
        "data.train_list",
        "data.masks",
        "data.support_reserve",
        "segmenter",
        "base",
    ),
    "labels": ("data", "labeling", "refinement", "novel"),
    "scores": ("evaluation", "protocol"),
}
"""Keys that each stage reads itself; `fingerprint` adds those of the stages before it."""


UPSTREAM = {"prompts": (), "images": ("prompts",), "base": (), "labels": ("images", "base"), "scores": ("labels",)}


def fingerprint(config: Config, stage: str) -> str:
    """Hash (16 hex digits) of the science keys that the result of `stage` depends on, upstream stages included."""
    science = config.science()

    def pick(key: str) -> Any:
        value: Any = science
        for part in key.split("."):
            value = value[part]
        return value

    parts = {key: pick(key) for key in STAGE_KEYS[stage]}
    parts |= {up: fingerprint(config, up) for up in UPSTREAM[stage]}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def config_digest(config: Config) -> str:
    """Hash (16 hex digits) of all science keys."""
    return hashlib.blake2b(json.dumps(config.science(), sort_keys=True).encode(), digest_size=8).hexdigest()
