"""BCM (NeurIPS 2024): the base model stays; where it says a novel class's parent, a logistic regression decides again.

The parent of a novel class is what the frozen base model most often says on its support cells, one base class or the
background. All other base predictions are untouched. Inductive: nothing is learned from queries.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from syn4seg.baselines.support import CELLS, CORNERS, FEATURES, BaselineFacts, BaselineTask, SupportCells
from syn4seg.schema import UNLABELED
from syn4seg.seeds import seeded
from syn4seg.segmenter.evaluation import Predictor, Query, scores_to_classes
from syn4seg.segmenter.network import Classifier, upsample

POWER = 0.5
"""Tukey's, on features."""
FOLDS = 5
STRENGTHS = np.logspace(-5, 5, 10)
"""Candidates for C."""
DEFAULT_STRENGTH = 1.0
"""C where there are too few cells to choose by (our choice)."""
FACTS: BaselineFacts = {
    "source": "BCM (NeurIPS 2024; IBM/BCM), with the options of its test.sh",
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
        FEATURES,
        CORNERS,
        CELLS,
    ],
}


def build(task: BaselineTask) -> Predictor:
    """Return BCM with the options of its public code."""
    return Bcm.of(task.base, task.cells, task.shots, task.seed)


@dataclass(frozen=True)
class Regression:
    """One logistic regression.

    Attributes:
        rows: on tempered features, one row per outcome.
        outcomes: 0 for the parent, n for its n-th novel class; a shot may lack some.
        votes: its weight in the ensemble.
    """

    rows: Classifier
    outcomes: list[int]
    votes: int


@dataclass(frozen=True)
class ParentClass:
    """A base class or the background, the novel classes that it hides, and who decides between them.

    Attributes:
        index: class index of the base model.
        novel: class indices, ascending.
        models: one per shot, then one of all shots; the latter alone at 1 shot.
    """

    index: int
    novel: list[int]
    models: list[Regression]

    def shares(self, tempered: Tensor) -> Tensor:
        """Return the probability of the parent and of each novel class: the weighted mean over models that know the outcome.

        Args:
            tempered: (1, D, h, w), see `temper`.

        Returns:
            (1, 1+len(novel), h, w).
        """
        total = tempered.new_zeros(1, 1 + len(self.novel), *tempered.shape[2:])
        votes = tempered.new_zeros(1 + len(self.novel))
        for model in self.models:
            total[:, model.outcomes] += model.votes * model.rows(tempered).softmax(1)
            votes[model.outcomes] += model.votes
        return total / votes.clamp_min(1)[:, None, None]


@dataclass(frozen=True)
class Bcm:
    """A predictor (see `Predictor`).

    Attributes:
        base: rows (1+B, D).
        parents: in the order of their class index.
    """

    base: Classifier
    parents: list[ParentClass]

    @staticmethod
    def of(base: Classifier, cells: SupportCells, shots: int, seed: int) -> Bcm:
        """Return the predictor of a support set; it fits (1 or shots+1) regressions per parent, 50 more for the C of each."""
        base = base.replaced(base.weight.detach(), base.bias.detach())
        labels, shot = cells.targets().cpu().numpy(), assign_shots(cells, shots)
        x = temper(cells.features).permute(0, 2, 3, 1).float().cpu().numpy()
        parents = []
        for index, novel in find_parents(base, cells).items():
            outcome = np.zeros_like(labels)  # other novel classes count as the parent's
            for n, k in enumerate(novel, 1):
                outcome[labels == k] = n
            jobs = {str(s): (1, shot == s) for s in range(shots)} if shots > 1 else {}
            jobs["all"] = (shots, np.full(len(labels), True))
            models = []
            for name, (votes, images) in jobs.items():
                use = images[:, None, None] & (labels != UNLABELED)
                models.append(_fit(x[use], outcome[use], votes, base, ("bcm", seed, index, name)))
            if models[-1] is not None:
                parents.append(ParentClass(index, novel, [m for m in models if m is not None]))
        return Bcm(base, parents)

    def __call__(self, query: Query) -> np.ndarray:
        """Return class indices uint8, as large as the query's label; probabilities, not logits, are brought to pixels."""
        size = (query.canvas.size, query.canvas.size)
        with torch.no_grad():
            features = query.features.to(self.base.weight)[None]
            before = scores_to_classes(query, upsample(self.base(features).softmax(1), size, self.base.align_corners))
            after, tempered = before.copy(), temper(features)
            for parent in self.parents:
                open_pixels = before == parent.index
                if open_pixels.any():
                    shares = upsample(parent.shares(tempered), size, self.base.align_corners)
                    outcomes = np.array([parent.index, *parent.novel], np.uint8)
                    after[open_pixels] = outcomes[scores_to_classes(query, shares)[open_pixels]]
        return after


def temper(features: Tensor) -> Tensor:
    """Return Tukey's power of features, which a ReLU made; what is negative all the same counts as 0."""
    return features.clamp_min(0) ** POWER


def find_parents(base: Classifier, cells: SupportCells) -> dict[int, list[int]]:
    """Return parent class index -> its novel class indices, both ascending; every novel class has one parent.

    The parent is the base model's most frequent class on the novel class's support cells, the lower index among equals.
    """
    with torch.no_grad():
        predicted = base(cells.features).argmax(1)
    parents: dict[int, list[int]] = {}
    for k in cells.novel:
        counts = predicted[cells.labels == k].bincount(minlength=cells.base_rows).cpu().numpy()
        parents.setdefault(int(counts.argmax()), []).append(k)
    return dict(sorted(parents.items()))


def assign_shots(cells: SupportCells, shots: int) -> np.ndarray:
    """Return the shot of each support image, int (N,): its place among the images that mostly show the same novel class."""
    labels = cells.labels.flatten(1).cpu().numpy()
    target = np.stack([(labels == k).sum(1) for k in cells.novel], 1).argmax(1)
    return np.array([(target[:n] == k).sum() % shots for n, k in enumerate(target)])


def _fit(x: np.ndarray, outcome: np.ndarray, votes: int, base: Classifier, names: tuple) -> Regression | None:
    """Return one regression, on the device of `base`; None if there is a single outcome.

    Args:
        x: tempered features float32 (P, D).
        outcome: int (P,).
        names: of its random draws.
    """
    outcomes = np.unique(outcome)
    if len(outcomes) < 2:
        return None
    use = balance_background(outcome, seeded(*names, "fit"))
    fitted = _regression(x[use], outcome[use], _best_strength(x, outcome, names))
    weight, bias = fitted.coef_, fitted.intercept_
    if len(outcomes) == 2:  # (-d, d), as the public code has it
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    rows = [torch.from_numpy(v.astype(np.float32)).to(base.weight) for v in (weight, bias)]
    return Regression(Classifier(rows[0], rows[1]), outcomes.tolist(), votes)


def _best_strength(x: np.ndarray, outcome: np.ndarray, names: tuple) -> float:
    """Return the C with the best mean average precision over stratified folds, the smallest among equals."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    outcomes, counts = np.unique(outcome, return_counts=True)
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        return DEFAULT_STRENGTH
    score = np.zeros(len(STRENGTHS))
    for fold, (learn, check) in enumerate(StratifiedKFold(folds).split(x, outcome)):
        learn = learn[balance_background(outcome[learn], seeded(*names, fold))]
        for i, strength in enumerate(STRENGTHS):
            decision = _regression(x[learn], outcome[learn], float(strength)).decision_function(x[check])
            decision = np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
            odds = np.exp(decision - np.logaddexp.reduce(decision, 1, keepdims=True))
            score[i] += np.mean([average_precision_score(outcome[check] == k, p) for k, p in zip(outcomes, odds.T, strict=True)])
    return float(STRENGTHS[score.argmax()])


def balance_background(outcome: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sorted places to learn from: all but those of outcome 0, and of 0 at most as many as the second largest has."""
    most = np.sort(np.bincount(outcome))[-2]
    zero, rest = np.flatnonzero(outcome == 0), np.flatnonzero(outcome)
    return np.sort(np.concatenate([rng.permutation(zero)[:most], rest]))


def _regression(x: np.ndarray, outcome: np.ndarray, strength: float):
    """Return a fitted scikit-learn regression; like the public code's, it may stop at the default number of steps."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength).fit(x, outcome)
