"""The two published protocol families as values of our keys, and the deviations of a configuration from them (method.md 7).

Numbers of the two families cannot be compared with each other: lists, support images, labels inside the support,
evaluation space and even the meaning of "base" and "mean" differ. A preset sets every key that matters; each result
names the preset and every deviation from it.
"""

from __future__ import annotations

from typing import Any

DIAM: dict[str, Any] = {
    "data.train_list": "noduplicate",
    "data.masks": "first_polygon",
    "data.support_from": "val",
    "data.support_draw": "named",
    "data.support_reserve": 0.0,
    "data.min_support_area": 0.0,
    "data.min_support_pixels": 16384,
    "data.base_in_support": "background",
    "data.only_one_novel": True,
    "data.draws": 5,
    "data.train_images": None,
    "data.val_images": None,
    "base.images": "all",
    "base.scale_of": "native",
    "segmenter.size": 417,
    "segmenter.canvas": "diam",
    "segmenter.align_corners": True,
    "segmenter.cosine": False,
    "novel.replay_images": 0,
    "synthesis.source": "generate",
    "evaluation.space": "canvas",
    "evaluation.queries": None,
    "evaluation.background_in_base": False,
    "evaluation.mean": "base_novel",
}
"""DIaM, BCM and VP: support from the val list, base objects in it are background, pixels counted on a 417 canvas."""

POP: dict[str, Any] = {
    "data.train_list": "trainaug",
    "data.masks": "all_polygons",
    "data.support_from": "train",
    "data.support_draw": "pop",
    "data.support_reserve": 0.0,
    "data.min_support_area": 0.0,
    "data.min_support_pixels": 16384,
    "data.base_in_support": "kept",
    "data.only_one_novel": False,
    "data.draws": 3,
    "data.train_images": None,
    "data.val_images": None,
    "base.images": "with_base",
    "base.scale_of": "native",
    "segmenter.size": 473,
    "segmenter.canvas": "plain",
    "segmenter.align_corners": True,
    "segmenter.cosine": False,
    "novel.replay_images": 200,
    "synthesis.source": "generate",
    "evaluation.space": "original",
    "evaluation.queries": None,
    "evaluation.background_in_base": True,
    "evaluation.mean": "all_classes",
}
"""POP and EKT (and, but for its support draws, CAPL): support from the train list with base labels, original pixels."""

STATED = {
    "diam": ("DIaM draws its supports from the random stream of seed 2023; ours are named by a hash (same pool, same rules)",),
    "pop": (
        "POP replays its whole base training list, sampled anew every epoch; ours replays novel.replay_images of it",
        "POP keeps the best checkpoint on the test list; ours always keeps the last",
    ),
}
"""Differences that no key removes."""


def preset(protocol: str, source: str) -> dict[str, Any]:
    """Return the values of a protocol, by dotted key, for a data source; empty for "none"."""
    if protocol == "none":
        return {}
    values = dict(DIAM if protocol == "diam" else POP)
    if source == "coco":
        values["evaluation.queries" if protocol == "diam" else "data.draws"] = 10000 if protocol == "diam" else 2
    return values


def deviations(protocol: str, source: str, science: dict[str, Any], draws: int) -> list[str]:
    """Return the deviations of a configuration from its protocol: "key: protocol -> configuration" lines, then `STATED`.

    Args:
        science: `Config.science()`.
        draws: `data.draws`, which is no part of it.
    """
    lines = []
    for key, expected in preset(protocol, source).items():
        section, _, name = key.partition(".")
        actual = draws if key == "data.draws" else science[section][name]
        if (
            actual != expected
            and not (key == "data.train_list" and source != "pascal")
            and not (key == "data.masks" and source != "coco")
        ):
            lines.append(f"{key}: {expected} -> {actual}")
    if protocol != "none":
        lines += _stated(protocol, source, science)
    return [*lines, *STATED.get(protocol, ())]


def _stated(protocol: str, source: str, science: dict[str, Any]) -> list[str]:
    """Return the deviations that depend on the configuration but are not the value of one key."""
    lines, backbone = [], science["segmenter"]["backbone"]
    if backbone not in ("resnet50-deep", "resnet101-deep"):
        lines.append(f"the public code has a ResNet with the 3-convolution stem (resnet50-deep); this backbone is {backbone}")
    if protocol == "diam" and science["novel"]["base_data"] != "none":
        shown = science["labeling"]["base_prototype_images"]
        lines.append(f"base prototypes are made of {shown} base training images when novel classes are learned; DIaM sees none")
    if protocol == "pop" and source != "pascal":
        lines.append("POP's draws depend on the order of its shuffled list; with the same seeds on this list they are other images")
    return lines
