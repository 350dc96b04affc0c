"""The field's methods, on the same frozen features, support sets and queries as ours: one line each.

Each follows its paper's public code as read (DIaM a61e1ed, BCM 63c782c, CAPL c5bb735), with no line of it. What had to differ
is in the `FACTS` of its module and is printed beside every result. See docs/extending.md for how a baseline is added.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syn4seg.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.evaluation import Predictor
    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import TrainingSample


@dataclass(frozen=True)
class Baseline:
    """A baseline.

    Attributes:
        title: its name in tables.
        module: dotted name of a module, imported when it is used, with `build(task: BaselineTask) -> Predictor` and
            `FACTS: BaselineFacts` (see `syn4seg.baselines.support`).
        transductive: whether it learns from the very images that it is scored on.
    """

    title: str
    module: str
    transductive: bool = False


BASELINES = {
    "imprinting": Baseline("prototype imprinting", "syn4seg.baselines.imprinting"),
    "finetuning": Baseline("support fine-tuning", "syn4seg.baselines.finetuning"),
    "diam": Baseline("DIaM", "syn4seg.baselines.diam", transductive=True),
    "bcm": Baseline("BCM", "syn4seg.baselines.bcm"),
}
"""Value of `evaluation.baselines` -> the baseline."""


def find_baseline(name: str) -> Baseline:
    """Return the baseline of a name.

    Raises:
        UserError: there is none.
    """
    if name not in BASELINES:
        expected = f"expected some of {', '.join(BASELINES)}{did_you_mean(name, BASELINES)}"
        raise UserError(f"evaluation.baselines={name}: no such baseline; {expected}")
    return BASELINES[name]


def title_of(name: str) -> str:
    """Return the title of a baseline; its name where a result has one that is not in the table now."""
    return BASELINES[name].title if name in BASELINES else name


def facts_of(name: str) -> dict[str, Any]:
    """Return what is printed beside a baseline's results: source, transductive, settings and deviations.

    Raises:
        UserError: no such baseline.
    """
    baseline = find_baseline(name)
    return {**importlib.import_module(baseline.module).FACTS, "transductive": baseline.transductive}


def build(
    name: str,
    *,
    base: Classifier,
    support: Sequence[TrainingSample],
    base_classes: int,
    novel_classes: int,
    shots: int,
    seed: int,
    prototypes: Tensor | None = None,
) -> Predictor:
    """Return a baseline that has seen the support set, ready for queries.

    Args:
        name: one of `BASELINES`.
        base: rows (1+B, D) of the base stage; work is done on its device.
        support: features and labels of all support images, in any order; the result does not depend on it.
        base_classes: B.
        novel_classes: M.
        shots: K.
        seed: names what a baseline draws.
        prototypes: (1+B, D) mean features of background and base classes for imprinting beside a linear base classifier;
            None, or a row of zeros: the direction of the classifier's row.

    Raises:
        UserError: no such baseline, no sample, labels beyond B+M, or a novel class on none.
        ValueError: the base classifier has not 1+B rows.
    """
    module = importlib.import_module(find_baseline(name).module)
    if len(base.weight) != 1 + base_classes:
        raise ValueError(f"the base classifier has {len(base.weight)} rows; expected {1 + base_classes}, background and base")
    from syn4seg.baselines.support import BaselineTask, SupportCells

    cells = SupportCells.of(support, base.weight, base_classes, novel_classes)
    return module.build(BaselineTask(base, cells, shots, seed, prototypes))
