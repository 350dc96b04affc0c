"""A configuration with the paper's models, the facts of its data set, and rates as a test says them."""

from __future__ import annotations

from syn4seg.planning.estimate import estimate
from syn4seg.planning.rates import Card, Rate, Rates, stated_rates
from syn4seg.planning.sizes_generators import STABILITY
from syn4seg.planning.workload import WorkloadFacts, workload

GIB = 2**30
FACTS = WorkloadFacts(novel=5, base=15, train_images=5953, queries=1449)
TRUE = (
    "data.source=pascal",
    "data.root=/nowhere",
    "base.checkpoint=train",
    f"synthesis.model={STABILITY}large",
    "synthesis.size=1024",
    "synthesis.batch=4",
    "synthesis.steps=28",
    "segmenter.backbone=resnet101",
    "segmenter.size=417",
    "segmenter.channels=512",
    "refinement.model=vit-h",
    "placement.encoding.gpus=1",
    "placement.synthesis.gpus=1",
    "placement.labeling.gpus=0.5",
    "placement.refinement.gpus=0.5",
)


def lines(config, facts=FACTS, rates=None):
    return {line.stage: line for line in estimate(config, facts, rates or stated_rates()).lines}


def fake_rates(config, facts, **seconds: float) -> Rates:
    """A measurement of everything: a given number of seconds per unit, else one."""
    made = [Rate(w.stage, w.kind, w.what, seconds.get(w.stage, 1.0), w.flops) for w in workload(config, facts)]
    return Rates("a fake", Card(1e12, 10 * GIB), tuple(made))
