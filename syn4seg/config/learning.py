"""The sections `novel` and `joint`: how base and novel classes are learned together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from syn4seg.config.sections import Count, Section, Share, Whole

JointRow = Literal["support_only", "class_name_raw", "hdig_raw", "apf", "apr", "syn4seg", "control_image_label", "oracle"]


class NovelConfig(Section):
    trains: Literal["classifier", "decoder", "all"] = "classifier"
    """What learns base and novel classes together: `classifier`, one layer on frozen features; then also, for `rows`, everything
    behind the backbone (`decoder`) or the whole network (`all`), on images, see `joint`."""
    rows: tuple[JointRow, ...] = ("syn4seg",)
    """Rows whose network is trained by the joint stage, if `trains` is not `classifier`; each becomes a row of its own."""
    steps: Count = 300
    """Optimiser steps of the novel stage."""
    label_stride: Count = 1
    """The cross-entropy looks at every n-th row and column of the labels: on a large canvas a step spends most time there."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate, relative to the root mean square of the base classifier's weights."""
    support_batch: Count = 4
    """Support images per step."""
    synthetic_batch: Count = 8
    """Synthetic images per step (0 synthetic samples in the row `support_only`)."""
    base_data: Literal["labelled", "predicted", "none"] = "labelled"
    """What of base data the stages after the base stage see. `labelled`: base training images with base labels. `predicted`: photos
    alone, with what the base model is sure of as their labels. `none`: no base image, but cells that invert the classifier."""
    base_photos: Path | None = None
    """`predicted`: folder of unlabeled photos; empty: the data set's train images, whose masks are not read for it."""
    base_confidence: Share = 0.7
    """`predicted`: a pixel on which the base model is less sure than this is unlabeled."""
    inverted_cells: Whole = 200
    """`none`: feature cells that are made for each base class from the classifier itself, and distilled (method.md 5.3)."""
    replay_images: Whole = 200
    """Base images (`base_data`) that are replayed; stated in every result."""
    replay_batch: Whole = 4
    """Replayed images per step."""
    synthetic_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the synthetic loss."""
    confidence_weight: Share = 0.0
    """How much the registered segmenter's confidence c weighs a synthetic pixel: 1 - this * (1 - c)."""
    background_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor on pixels labelled background in the cross-entropy, of support, synthetic and replayed images alike."""
    merge_synthetic: bool = False
    """In the loss a synthetic image's background may be any novel class, as in support and replayed images: for rough labels."""
    distillation: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation to the base classifier on pixels that are not novel."""
    ramp: Share = 0.0
    """Share of the steps over which the synthetic samples are admitted, in the order of the plan: step s of S draws from the
    first ceil(N (s + 1) / (ramp S)) of N. Above 0 the stage starts on the first labels and overlaps synthesis; 0 admits all
    from the first step. The same result whenever the labels arrive."""


class JointConfig(Section):
    steps: Count = 300
    """Optimiser steps (AdamW) of the joint stage."""
    lr: Annotated[float, Field(gt=0)] = 0.0005
    """Learning rate of the backbone; polynomial decay of power 0.9."""
    decoder_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on it for what lies between backbone and classifier."""
    classifier_factor: Annotated[float, Field(gt=0)] = 1.0
    """Factor on it for the classifier."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    support_batch: Whole = 4
    """Support images per step."""
    synthetic_batch: Whole = 8
    """Accepted synthetic images per step."""
    base_batch: Whole = 8
    """Base images per step: of all base training images, or of those that are replayed (`novel.base_data`); 0: none."""
    norms: Literal["frozen", "batch"] = "frozen"
    """Batch norms keep their statistics, or take those of each batch (of all workers)."""
    average: Share = 0.98
    """Decay of the exponential average of the weights, which is the result; 0: the last weights."""
    scale: tuple[float, float] = (0.75, 1.33)
    """Range of the random scale."""
    scale_of: Literal["crop", "native"] = "crop"
    """What it multiplies, as `base.scale_of`."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation in degrees, of half of the views."""
    blur: Share = 0.0
    """Chance of a Gaussian blur."""
    colour: Share = 0.0
    """Brightness, contrast and saturation change by a factor of up to 1 + this."""
    crop: Count | None = None
    """Side of the random crop in pixels; the canvas's own size when empty."""
