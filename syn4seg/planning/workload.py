"""What a run has to do, counted from its configuration alone: the units of work of every stage, with their FLOPs.

Nothing is loaded and no data set is needed where its numbers are published; `footprint` has memory and disk, `estimate`
turns counts into hours.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from syn4seg.config.placement import PoolConfig
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.errors import UserError
from syn4seg.planning.rates import CPU_BYTES, TF32, Kind, StageWork
from syn4seg.planning.sizes_generators import generator_size
from syn4seg.planning.sizes_vision import (
    FeatureSize,
    SegmenterSize,
    feature_size,
    model_size,
    named_size,
    network_size,
    sam_size,
    segmenter_size,
)
from syn4seg.stages.rows import joint_names, rows_of
from syn4seg.stages.similarity import feature_side

EMBEDDED_FACTS = (4, 12, 6000, 300)
LISTS = {
    ("pascal", "noduplicate"): 5953,
    ("pascal", "trainaug"): 10582,
    ("coco", "noduplicate"): 82081,
    ("coco", "trainaug"): 82081,
}
COMPONENTS = 3
"""Stated number of labelled components (SAM's boxes) of an image."""
DRAW_SECONDS, APE_SECONDS, SABR_SECONDS = 0.5, 0.05, 0.012
"""Stated seconds on a core per million pixels: rendering; APF and APR; SABR (benchmarks/label_arithmetic.py)."""
COUNT_SECONDS = 0.006
"""Stated seconds on a core per million pixels to count a prediction."""
READ_SECONDS = 0.004
"""Stated seconds on a core to read a photo with its mask, and to warp or resize it (measured on photos of 0.15 megapixels)."""


@dataclass(frozen=True)
class WorkloadFacts:
    """What the plan needs to know of a data set: novel and base classes of the fold, training images, queries."""

    novel: int
    base: int
    train_images: int
    queries: int


def facts_of(config: Config, dataset: Dataset | None = None, fold: Fold | None = None) -> WorkloadFacts:
    """Return the facts of a data set; without one, the published ones of PASCAL and COCO, or those of the embedded world.

    Raises:
        UserError: a folder is planned for without its data set.
    """
    data = config.data
    if dataset is not None and fold is not None:
        return WorkloadFacts(len(fold.novel), len(fold.base), len(dataset.train), len(dataset.val))
    if data.source == "folder":
        raise UserError("data.source=folder: its classes and lists are needed for a plan; check data.root")
    if data.source == "embedded":
        novel, base, train, queries = EMBEDDED_FACTS
        return WorkloadFacts(novel, base, data.train_images or train, data.val_images or queries)
    novel, base, queries = (5, 15, 1449) if data.source == "pascal" else (20, 60, 40137)
    train = min(LISTS[data.source, data.train_list], data.train_images or 10**9)
    return WorkloadFacts(novel, base, train, min(queries, data.val_images or 10**9))


def samples_of(config: Config, facts: WorkloadFacts) -> tuple[int, int]:
    """Return the synthetic samples, and the images made for them: whole generator batches (imported images are not padded)."""
    synthesis = config.synthesis
    banks = 1 + (synthesis.class_name_bank and synthesis.from_prompts)
    samples = facts.novel * synthesis.images_per_class * banks
    return samples, math.ceil(samples / synthesis.batch) * synthesis.batch if synthesis.source == "generate" else samples


def prompts_of(config: Config, facts: WorkloadFacts) -> int:
    """Return how many distinct texts are encoded: the bank, the class names and the empty prompt (refused candidates come on
    top)."""
    if config.synthesis.source == "folder":
        return 0
    return facts.novel * (config.prompts.bank_size + 1) + 1


def kind_of(config: Config, pool: PoolConfig | None = None) -> Kind:
    """Return the kind of device of a pool, or of training (`pool` None): a GPU if `placement` has one anywhere."""
    place = config.placement
    if place.device != "auto":
        return "gpu" if place.device == "cuda" else "cpu"
    pools = [pool] if pool else [place.encoding, place.synthesis, place.labeling, place.refinement]
    return "gpu" if any(p.gpus for p in pools) else "cpu"


def segmenter_of(config: Config, facts: WorkloadFacts, side: int | None = None) -> SegmenterSize:
    """Return the size of the configured segmenter with its base classifier, on its canvas or on crops of `side` pixels."""
    net = config.segmenter
    if config.base.is_model:
        return model_size(config.base.checkpoint, 1 + facts.base, net.size)
    if config.base.is_network:
        return network_size(config.base.checkpoint, 1 + facts.base, net.size)
    return segmenter_size(net.backbone, 1 + facts.base, net.channels, net.ppm_bins, side or net.size)


def features_of(config: Config) -> FeatureSize | None:
    """Return the size of the network of `labeling.features`; None where it is the segmenter."""
    if not config.labeling.by_other_features:
        return None
    return feature_size(config.labeling.feature_backbone, feature_side(config))


def _pooled(config: Config, pool: PoolConfig) -> Any:
    return {
        "kind": kind_of(config, pool),
        "cores": max(1.0, pool.cpus),
        "actors": 1 if config.placement.runner == "inline" else pool.size,
    }


def workload(config: Config, facts: WorkloadFacts) -> list[StageWork]:
    """Return everything that a run does, stage by stage; a stage without work is left out."""
    stages = [*_stream_work(config, facts), *_training_work(config, facts)]
    return [stage for stage in stages if stage.count]


def _stream_work(config: Config, facts: WorkloadFacts) -> list[StageWork]:
    make, place, draws = config.synthesis, config.placement, config.data.draws
    samples, images = samples_of(config, facts)
    generator, sam, net = generator_size(make.generator), sam_size(config.refinement.model), segmenter_of(config, facts)
    pixels, canvas, other = make.size**2 / 1e6, config.segmenter.size**2 / 1e6, features_of(config)
    generated = make.source == "generate"  # a service makes its images elsewhere, see `estimate`
    how = make.model_dump(
        mode="json", include={"model", "size", "steps", "batch", "compile", "attention", "vae_slicing", "weights", "step_cache"}
    )
    seen = {"backbone": config.network, "size": config.segmenter.size, "channels": config.segmenter.channels}
    if other is not None:
        seen |= {"features": config.labeling.feature_backbone, "feature_size": feature_side(config)}
    return [
        StageWork(
            "encoding",
            "prompt",
            prompts_of(config, facts),
            generator.text_flops(),
            what={"model": make.model},
            extra=0.001,
            **_pooled(config, place.encoding) | {"actors": 1},
        ),
        StageWork(
            "synthesis",
            "image",
            images if generated else 0,
            generator.image_flops(make.size, make.steps_taken, make.guidance),
            what=how | {"guided": make.guidance > 1},
            extra=0.0 if generator.is_network else DRAW_SECONDS * pixels,
            **_pooled(config, place.synthesis),
        ),
        StageWork(
            "labeling",
            "image",
            samples * draws * config.labeling.rounds,
            net.flops + (other.flops if other else 0),
            what=seen | {"classes": 1 + facts.base + facts.novel},
            tensor_share=TF32,
            extra=APE_SECONDS * canvas,
            **_pooled(config, place.labeling),
        ),
        StageWork(
            "refinement",
            "image",
            samples * draws * config.labeling.rounds,
            sam.encode_flops + COMPONENTS * sam.box_flops,
            what={"model": config.refinement.model, "size": make.size, "images_per_pass": config.refinement.images_per_pass},
            extra=SABR_SECONDS * pixels,
            **_pooled(config, place.refinement),
        ),
    ]


def cached_images(config: Config, facts: WorkloadFacts) -> int:
    """Count the synthetic, support and replayed images of the novel stage, whose features are kept."""
    data = config.data
    return samples_of(config, facts)[0] + facts.novel * data.shots * data.draws + config.base_images_used[0]


def step_images(config: Config) -> int:
    """Return images in a step of the novel stage."""
    novel = config.novel
    return novel.support_batch + novel.synthetic_batch + (novel.replay_batch if config.base_images_used[0] else 0)


def _training_work(config: Config, facts: WorkloadFacts) -> list[StageWork]:
    settings, novel, draws, rows = config.segmenter, config.novel, config.data.draws, len(rows_of(config))
    net, step, side = segmenter_of(config, facts), step_images(config), settings.size
    queries = min(config.evaluation.queries or facts.queries, facts.queries)
    looked_at = min(facts.queries, queries * draws) if config.evaluation.queries else queries
    images = cached_images(config, facts) + config.base_images_used[1] + looked_at
    classes, (width, h, w) = 1 + facts.base + facts.novel, net.features
    logits = 4.0 * classes * side**2
    pixel_flops = 2.0 * classes * (width * h * w + side * h * w + side * w * side)
    head = {"classes": classes, "features": [width, h, w], "size": side}
    here: Any = {"kind": kind_of(config), "cores": float(os.cpu_count() or 1), "tensor_share": TF32}
    reading = 0.0 if config.data.source == "embedded" else READ_SECONDS
    ahead = {"extra": reading, "readers": config.placement.training.readers}
    return [
        _base_work(config, facts, here | ahead),
        StageWork(
            "features",
            "image",
            images,
            net.flops,
            extra=reading,
            what={"backbone": config.network, "size": side, "channels": settings.channels},
            **here,
        ),
        StageWork(
            "novel",
            "step",
            novel.steps * (rows + config.labeling.rounds - 1) * draws,  # an earlier round trains one row
            3.0 * step * pixel_flops,
            what=head | {"images": step},
            moved=20 * step * logits,
            extra=2 * step * width * h * w / CPU_BYTES,
            **here,
        ),
        _named_work(config, facts, here),
        _joint_work(config, facts, here | ahead),
        StageWork(
            "evaluation",
            "call",
            queries * (rows * draws + len(joint_names(config))),
            pixel_flops,
            what=head,
            moved=6 * logits,
            extra=COUNT_SECONDS * side**2 / 1e6,
            **here,
        ),
    ]


def _base_work(config: Config, facts: WorkloadFacts, here: Any) -> StageWork:
    base, settings = config.base, config.segmenter
    crop = base.crop or settings.size
    net, images = segmenter_of(config, facts, crop), round(facts.train_images * (1 - config.data.support_reserve))
    flops = 3.0 * net.flops
    if settings.freeze_backbone:  # its maps of every image and its mirror image are computed once
        flops = 3.0 * (net.flops - net.backbone_flops) + 2.0 * net.backbone_flops / base.epochs
    what = {
        "backbone": settings.backbone,
        "size": crop,
        "channels": settings.channels,
        "batch": base.batch,
        "frozen": settings.freeze_backbone,
    }
    return StageWork("base", "image", images * base.epochs if base.checkpoint == "train" else 0, flops, what=what, **here)


def named_of(config: Config) -> FeatureSize | None:
    """Return the size of the network of `evaluation.by_name`; None where there is none."""
    return named_size(config.evaluation.by_name) if config.evaluation.by_name else None


def _named_work(config: Config, facts: WorkloadFacts, here: Any) -> StageWork:
    """Return the masks by name: each image of diverse prompts once, whatever the number of draws."""
    named = named_of(config)
    images = facts.novel * config.synthesis.images_per_class if named else 0
    return StageWork("by_name", "image", images, named.flops if named else 0, what={"model": config.evaluation.by_name}, **here)


def joint_step_images(config: Config) -> int:
    """Return images in a step of the joint stage."""
    joint = config.joint
    return joint.support_batch + joint.synthetic_batch + config.base_images_used[2]


def _joint_work(config: Config, facts: WorkloadFacts, here: Any) -> StageWork:
    joint, settings, step = config.joint, config.segmenter, joint_step_images(config)
    crop = joint.crop or settings.size
    net = segmenter_of(config, facts, crop)
    teacher = net.flops if config.novel.distillation or config.novel.confidence_weight else 0.0
    kept = 2.0 * net.backbone_flops if config.novel.trains == "decoder" else 0.0  # no gradient behind it
    what = {
        "backbone": settings.backbone,
        "size": crop,
        "channels": settings.channels,
        "batch": step,
        "trains": config.novel.trains,
    }
    return StageWork(
        "joint", "image", joint.steps * step * len(joint_names(config)), 3.0 * net.flops - kept + teacher, what=what, **here
    )
