"""The field's methods, on the same frozen features, support sets and queries as ours, and how each differs from its source.

Each follows its paper's public code as read (DIaM a61e1ed, BCM 63c782c, CAPL c5bb735), with no line of it; what had to
differ is in `facts` and is printed beside every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from syn4seg.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.evaluation import Predictor
    from syn4seg.segmenter.network import Classifier
    from syn4seg.segmenter.novel import Sample

NAMES = ("imprinting", "finetuning", "diam", "bcm")


class Facts(TypedDict):
    """What is printed beside a baseline's results.

    Attributes:
        source: the method followed.
        transductive: whether it learns from the very images that it is scored on.
        settings: its numbers.
        deviations: where it differs from its source, a line each.
    """

    source: str
    transductive: bool
    settings: str
    deviations: list[str]


_CELLS = (
    "a novel class that nearest-neighbour downsampling loses on all its support labels keeps the fullest cell of each; the public "
    "code would learn nothing of it"
)
_FEATURES = "features are the frozen ones of our base stage, kept as float16"
_CORNERS = "scores go to pixels with the base classifier's corner convention; the public code always aligns corners"
_FACTS: dict[str, Facts] = {
    "imprinting": {
        "source": "prototype imprinting as CAPL registers novel classes (Tian et al., CVPR 2022; dvlab-research/GFS-Seg)",
        "transductive": False,
        "settings": "novel prototype = mean support feature over pixels and shots, then unit length; 10 x cosine; no gradient",
        "deviations": [
            "base prototypes are not blended with support context: the gate gamma is learned in CAPL's own base training",
            "no refinement of base prototypes by the query",
            "CAPL trains its prototypes for the cosine; with a linear base classifier, base prototypes here are mean features of "
            "base training images, and the background's is a mean over support pixels",
            "a class is pooled over all support images that show it, not over its own alone (the same where an image "
            "shows one novel class)",
            _FEATURES,
            _CORNERS,
            _CELLS,
        ],
    },
    "finetuning": {
        "source": "support fine-tuning, the field's plain baseline, in our code",
        "transductive": False,
        "settings": "imprinted novel rows, then all rows by cross-entropy on the support set alone (no synthetic image, no "
        "replay, no distillation), background merged with the base classes as in DIaM; 100 Adam steps on all cells",
        "deviations": ["no one source: papers differ in what their fine-tuning trains and for how long; here the classifier alone"],
    },
    "diam": {
        "source": "DIaM (Hajimiri et al., CVPR 2023; sinahmr/DIaM)",
        "transductive": True,
        "settings": "each query its own classifier: 100 SGD steps of 1.25e-3 on 100 CE + KL(marginal||pi) + entropy + 100 KD; "
        "pi from the model itself, again after step 10; background weight 0.01 at 1 shot, else 0.15",
        "deviations": [
            "it optimises on the test image, and, as in the public code, leaves out that image's unlabelled (255) pixels: padding "
            "and, where there are some, the annotated borders",
            "base objects that a protocol keeps in the support labels count as background, as in its own protocol",
            "where the base classifier is 10 x cosine its logits are read so; the public code has a linear one only",
            _FEATURES,
            _CORNERS,
            _CELLS,
        ],
    },
    "bcm": {
        "source": "BCM (NeurIPS 2024; IBM/BCM), with the options of its test.sh",
        "transductive": False,
        "settings": "features to the power 0.5; one parent per novel class; logistic regression per parent, background drawn down "
        "to the second largest class, C of 10 in 1e-5..1e5 by 5 stratified folds on mean average precision; K models of one shot "
        "each and one of all shots, with votes 1 and K",
        "deviations": [
            "votes 1:...:1:K for any K (the public code has 1:1:1:1:1:5 and knows 5 shots only); a single model at 1 shot",
            "scikit-learn's logistic regression (L-BFGS, its defaults); the public code uses Intel's version of it",
            "an outcome with fewer than 5 cells gets as many folds as cells, and C = 1 below 2; a shot or parent with a single "
            "outcome gets no model",
            "the background cells kept are drawn by a named seed; the public code draws from one running stream",
            "images are dealt to shots by the novel class that covers most of them, in the order of their ids",
            "base objects that a protocol keeps in the support labels count as background, as in its own protocol",
            _FEATURES,
            _CORNERS,
            _CELLS,
        ],
    },
}


def facts(name: str) -> Facts:
    """Source, transduction, settings and deviations of a baseline.

    Raises:
        UserError: no such baseline.
    """
    _check_name(name)
    return _FACTS[name]


def build(
    name: str,
    *,
    base: Classifier,
    support: Sequence[Sample],
    base_classes: int,
    novel_classes: int,
    shots: int,
    seed: int,
    prototypes: Tensor | None = None,
) -> Predictor:
    """A baseline that has seen the support set, ready for queries.

    Args:
        name: one of `NAMES`.
        base: rows (1+B, D) of the base stage; work is done on its device.
        support: features and labels of all support images, in any order; the result does not depend on it.
        base_classes: B.
        novel_classes: M.
        shots: K.
        seed: names what BCM draws; the others draw nothing.
        prototypes: (1+B, D) mean features of background and base classes for imprinting beside a linear base classifier;
            None, or a row of zeros: the direction of the classifier's row.

    Raises:
        UserError: no such baseline, a base classifier without 1+B rows, no sample, labels beyond B+M, or a novel class on none.
    """
    _check_name(name)
    if len(base.weight) != 1 + base_classes:
        raise UserError(
            f"the base classifier has {len(base.weight)} rows; expected {1 + base_classes} (background and "
            f"{base_classes} base classes): give the classifier of the base stage"
        )
    from syn4seg.baselines.imprinting import SupportCells, imprinted

    cells = SupportCells.of(support, base.weight, base_classes, novel_classes)
    if name == "imprinting":
        return imprinted(base, cells, None if base.cosine else prototypes)
    if name == "finetuning":
        from syn4seg.baselines.finetuning import finetuned

        return finetuned(base, cells)
    if name == "diam":
        from syn4seg.baselines.diam import Diam

        return Diam.of(base, cells, shots)
    from syn4seg.baselines.bcm import Bcm

    return Bcm.of(base, cells, shots, seed)


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise UserError(f"baseline {name!r} is unknown; expected {', '.join(NAMES)}")
