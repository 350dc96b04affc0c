"""Memory of every actor and disk of every stage, before anything is loaded: weights exactly, the rest by stated formulas."""

from __future__ import annotations

import math

from syn4seg.config.tree import Config
from syn4seg.planning.rates import Rates
from syn4seg.planning.sizes_generators import WEIGHT_BYTES, generator_size
from syn4seg.planning.sizes_vision import sam_size
from syn4seg.planning.workload import (
    WorkloadFacts,
    cached_images,
    features_of,
    joint_step_images,
    kind_of,
    named_of,
    prompts_of,
    samples_of,
    segmenter_of,
    step_images,
    workload,
)
from syn4seg.stages.rows import joint_names, rows_of

IMAGE_BITS = 14.0
"""Stated bits per pixel of an RGB PNG: 13.8 on 40 photos and 13.9 on the embedded world, both measured."""
LABEL_BITS, LABEL_BYTES, RECORD_BYTES = 0.2, 200, 1500
"""Stated size of a label PNG: bits per pixel and a fixed part (0.23 bits measured on 40 photos' masks); of a record."""
CACHE_BYTES = 4 * 2**30
"""Bytes of features that the novel stage keeps in main memory; the rest is in files while it lasts."""
CUDA_BYTES = 6 * 10**8
"""Stated bytes of a CUDA context."""
ENCODED_AT_ONCE, FEATURES_AT_ONCE = 8, 32
OBJECTS = 200
"""Objects of a name that SAM 3 may find in an image."""
FORMULAS = {
    "encoding": "weights + 8 prompts x tokens x 16 x 4096",
    "synthesis": "weights + the larger of 16 x images (2 with guidance) x tokens x width and, for the VAE, 8 x first channels x "
    "pixels of the images decoded at once",
    "labeling": "weights + 3 x input of the bottleneck + 4 x logits on the canvas; with another network in labeling.features also "
    "its weights + 3 x the output of its largest layer",
    "refinement": "weights + 3 x heads x tokens^2 x images per pass; on a GPU 1.5 x weights (the bfloat16 copy) + 2500 x heads x "
    "tokens x images per pass (fused attention; measured with ViT-B and ViT-H)",
    "base": "weights x (weight, gradient, moments) + batch x (outputs of all trained layers + 4 x logits on the crop)",
    "features": "weights (of labeling.features too, for its prototypes) + 32 images x 3 x input of the bottleneck",
    "novel": "images of a step x (features + 6 x logits on the canvas); in main memory at most 4 GiB of features",
    "by_name": "weights + 3 x output of the image encoder's largest layer + 200 objects x 2 masks as large as the image",
    "joint": "weights x (base network, weight, average, gradient, moments) + images x (outputs of all layers + 6 x logits)",
    "evaluation": "4 x logits on the canvas",
}
"""How memory is reckoned where it was not measured, in numbers of 2 bytes (SD3 and SAM's encoder on a GPU) or 4."""


def memory_of(config: Config, facts: WorkloadFacts) -> dict[str, tuple[int, int]]:
    """Return the bytes of weights and of everything else, per stage and actor, after `FORMULAS`; on a GPU with a CUDA context."""
    net, side = segmenter_of(config, facts), config.segmenter.size
    logits = 4 * (1 + facts.base + facts.novel) * side**2
    step = step_images(config) * (4 * math.prod(net.features) + 6 * logits)
    other = features_of(config)
    weights, largest = (other.part.bytes(4), other.largest) if other else (0, 0)
    cache = min(CACHE_BYTES, feature_bytes(config, facts)) if kind_of(config) == "cpu" else 0
    memory = {
        "encoding": _encoder(config),
        "synthesis": _generator(config),
        "refinement": _sam(config),
        "labeling": (net.part.bytes(4) + weights, 12 * (net.trunk + largest) + 4 * logits),
        "base": _training(config, facts),
        "features": (net.part.bytes(4) + weights, FEATURES_AT_ONCE * 12 * net.trunk),
        "novel": (0, step + cache),
        "by_name": _named(config),
        "joint": _joint(config, facts),
        "evaluation": (0, 4 * logits),
    }
    on_gpu = {stage.stage for stage in workload(config, facts) if stage.kind == "gpu"}
    return {name: (weights, more + (CUDA_BYTES if name in on_gpu else 0)) for name, (weights, more) in memory.items()}


def _encoder(config: Config) -> tuple[int, int]:
    size, width = (generator_size(config.synthesis.generator), 2 if kind_of(config, config.placement.encoding) == "gpu" else 4)
    return size.text_bytes(width), ENCODED_AT_ONCE * size.text_tokens * 16 * 4096 * width if size.text else 0


def _generator(config: Config) -> tuple[int, int]:
    make, size = config.synthesis, generator_size(config.synthesis.generator)
    if not size.is_network:
        return 0, 0
    on_gpu = kind_of(config, config.placement.synthesis) == "gpu"
    width = 2 if on_gpu else 4
    quantised = WEIGHT_BYTES[make.weights] if on_gpu else width
    held = size.activations(make.size, make.batch, make.guidance, sliced=make.vae_slicing)
    return size.image_bytes(width, quantised), width * held


def _sam(config: Config) -> tuple[int, int]:
    sam, on_gpu = sam_size(config.refinement.model), kind_of(config, config.placement.refinement) == "gpu"
    rows = sam.heads * sam.tokens * config.refinement.images_per_pass
    if on_gpu:
        return round(1.5 * sam.part.bytes(4)), 2 * 2500 * rows
    return sam.part.bytes(4), 4 * 3 * sam.tokens * rows


def _named(config: Config) -> tuple[int, int]:
    named = named_of(config)
    return (named.part.bytes(4), 12 * named.largest + 8 * OBJECTS * config.synthesis.size**2) if named else (0, 0)


def _training(config: Config, facts: WorkloadFacts) -> tuple[int, int]:
    base, frozen = config.base, config.segmenter.freeze_backbone
    crop = base.crop or config.segmenter.size
    net = segmenter_of(config, facts, crop)
    trained = net.part.parameters - (net.backbone.parameters if frozen else 0)
    kept = net.kept - (net.backbone_kept if frozen else 0) + 4 * (1 + facts.base) * crop**2
    return net.part.bytes(4) + trained * 4 * (1 + _moments(config)), 4 * base.batch * kept


def _joint(config: Config, facts: WorkloadFacts) -> tuple[int, int]:
    crop = config.joint.crop or config.segmenter.size
    net, all_trained = segmenter_of(config, facts, crop), config.novel.trains == "all"
    trained = net.part.parameters - (0 if all_trained else net.backbone.parameters)
    kept = net.kept - (0 if all_trained else net.backbone_kept) + 6 * (1 + facts.base + facts.novel) * crop**2
    return 3 * net.part.bytes(4) + 12 * trained, 4 * joint_step_images(config) * kept


def _moments(config: Config) -> int:
    """Return how many numbers the optimiser keeps for each parameter."""
    return 2 if config.base.optimizer == "adamw" else 1


def feature_bytes(config: Config, facts: WorkloadFacts) -> int:
    """Return the bytes of the float16 features that the novel stage keeps."""
    return 2 * math.prod(segmenter_of(config, facts).features) * cached_images(config, facts)


def disk_of(config: Config, facts: WorkloadFacts, rates: Rates) -> dict[str, int]:
    """Return the bytes that each stage leaves in the run directory; images and labels by a measured sample where there is one.

    `features` are the features that do not fit in memory; their files are gone when the stage ends.
    """
    samples, size, draws = samples_of(config, facts)[0], config.synthesis.size, config.data.draws
    labels = draws * config.labeling.rounds
    generator, net = generator_size(config.synthesis.generator), segmenter_of(config, facts)
    stored = 2 if generator.is_network and kind_of(config, config.placement.encoding) == "gpu" else 4
    label = LABEL_BITS / 8 * size**2 + LABEL_BYTES
    each = {"synthesis": IMAGE_BITS / 8 * size**2, "labeling": 3 * label + RECORD_BYTES, "refinement": label}
    for stage in workload(config, facts):
        rate = rates.of(stage)[2]
        if rate is not None and rate.file_bytes and stage.stage in each:
            each[stage.stage] = rate.file_bytes
    training = net.part.bytes(4) + 4 * _moments(config) * net.part.parameters if config.base.checkpoint == "train" else 0
    classifier = 4 * (1 + facts.base + facts.novel) * (net.features[0] + 1)
    return {
        "encoding": prompts_of(config, facts) * generator.embedding_numbers * stored,
        "synthesis": round(samples * each["synthesis"]),
        "labeling": round(samples * labels * each["labeling"]),
        "refinement": round(samples * labels * each["refinement"]),
        "base": net.part.bytes(2) + training,
        "features": max(0, feature_bytes(config, facts) - CACHE_BYTES),
        "novel": len(rows_of(config)) * draws * classifier,
        "joint": len(joint_names(config)) * net.part.bytes(2),
    }
