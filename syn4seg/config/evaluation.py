"""The section `evaluation`: what is scored, and what stands beside it in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from syn4seg.config.sections import Count, Section


class EvaluationConfig(Section):
    space: Literal["original", "canvas"] = "original"
    """Where pixels are counted: the original image (CAPL, POP) or the segmenter's canvas (DIaM, BCM)."""
    queries: Count | None = None
    """Score a random sample of this many queries, another one in each draw (10000 on COCO in DIaM)."""
    background_in_base: bool = False
    """Which base mIoU the table shows: foreground classes (DIaM), or with the background (CAPL, POP)."""
    mean: Literal["base_novel", "all_classes"] = "base_novel"
    """Which mean the table shows: (base + novel) / 2 (DIaM), or over all classes, `total` (CAPL, POP)."""
    rows: tuple[Literal["class_name_raw", "hdig_raw", "apf", "apr", "syn4seg"], ...] = ()
    """Rows of the ablation that are trained and scored, beside `support_only`; empty: all."""
    controls: bool = False
    """Also train the controls: the image's class alone, another class's prototype and, where they are known, the true masks."""
    by_name: str | None = None
    """Also train the control whose labels are the masks that this SAM 3 finds for the class's name: a folder of transformers, or a
    hub id such as `facebook/sam3`."""
    masks: Path | None = None
    """True masks of imported images, if there are any: MASKS/NAME.png with the data set's ids. Only the control `oracle` and the
    figures of label quality read them."""
    baselines: tuple[str, ...] = ()
    """Baselines scored beside ours on the same features: `imprinting` (prototypes, CAPL's), `finetuning` (on the support set),
    `diam` (transductive), `bcm`."""
