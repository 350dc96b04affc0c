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

from syn4seg.baselines.imprinting import SupportCells
from syn4seg.schema import UNLABELED
from syn4seg.seeds import seeded
from syn4seg.segmenter.evaluation import Query, winners
from syn4seg.segmenter.network import Classifier, upsample

POWER = 0.5
"""Tukey's, on features."""
FOLDS = 5
STRENGTHS = np.logspace(-5, 5, 10)
"""Candidates for C."""
PLAIN_STRENGTH = 1.0
"""C where there is too little to choose by [ours]."""


@dataclass(frozen=True)
class Model:
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
class Parent:
    """A base class or the background, the novel classes that it hides, and who decides between them.

    Attributes:
        index: class index of the base model.
        novel: class indices, ascending.
        models: one per shot, then one of all shots; the latter alone at 1 shot.
    """

    index: int
    novel: list[int]
    models: list[Model]

    def shares(self, tempered: Tensor) -> Tensor:
        """Probability of the parent and of each novel class: the weighted mean over models that know the outcome.

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
    parents: list[Parent]

    @staticmethod
    def of(base: Classifier, cells: SupportCells, shots: int, seed: int) -> Bcm:
        """Ready for queries; fits (1 or shots+1) regressions per parent, 50 more for the C of each."""
        base = base.replaced(base.weight.detach(), base.bias.detach())
        labels, shot = cells.targets().cpu().numpy(), shots_of(cells, shots)
        x = temper(cells.features).permute(0, 2, 3, 1).float().cpu().numpy()
        made = []
        for index, novel in families(base, cells).items():
            outcome = np.zeros_like(labels)  # other novel classes count as the parent's
            for n, k in enumerate(novel, 1):
                outcome[labels == k] = n
            jobs = {"all": (shots, np.full(len(labels), True))}
            if shots > 1:
                jobs = {str(s): (1, shot == s) for s in range(shots)} | jobs
            models = []
            for name, (votes, images) in jobs.items():
                use = images[:, None, None] & (labels != UNLABELED)
                models.append(_fit(x[use], outcome[use], votes, base, ("bcm", seed, index, name)))
            if models[-1] is not None:
                made.append(Parent(index, novel, [m for m in models if m is not None]))
        return Bcm(base, made)

    def __call__(self, query: Query) -> np.ndarray:
        """Class indices uint8, as large as the query's label; probabilities, not logits, are brought to pixels."""
        size = (query.canvas.size, query.canvas.size)
        with torch.no_grad():
            features = query.features.to(self.base.weight)[None]
            before = winners(query, upsample(self.base(features).softmax(1), size, self.base.align_corners))
            after, tempered = before.copy(), temper(features)
            for parent in self.parents:
                here = before == parent.index
                if here.any():
                    shares = upsample(parent.shares(tempered), size, self.base.align_corners)
                    after[here] = np.array([parent.index, *parent.novel], np.uint8)[winners(query, shares)[here]]
        return after


def temper(features: Tensor) -> Tensor:
    """Tukey's power of features, which a ReLU made; what is negative all the same counts as 0."""
    return features.clamp_min(0) ** POWER


def families(base: Classifier, cells: SupportCells) -> dict[int, list[int]]:
    """Parent class index -> its novel class indices, both ascending; every novel class has one parent.

    The parent is the base model's most frequent class on the novel class's support cells, the lower index among equals.
    """
    with torch.no_grad():
        said = base(cells.features).argmax(1)
    found: dict[int, list[int]] = {}
    for k in cells.novel:
        counts = said[cells.labels == k].bincount(minlength=cells.base_rows).cpu().numpy()
        found.setdefault(int(counts.argmax()), []).append(k)
    return dict(sorted(found.items()))


def shots_of(cells: SupportCells, shots: int) -> np.ndarray:
    """The shot of each support image, int (N,): its place among the images that mostly show the same novel class."""
    labels = cells.labels.flatten(1).cpu().numpy()
    target = np.stack([(labels == k).sum(1) for k in cells.novel], 1).argmax(1)
    places = [(target[:n] == k).sum() % shots for n, k in enumerate(target)]
    return np.array(places)


# ------------------------------------------------------------------------------------------- logistic regression
def _fit(x: np.ndarray, outcome: np.ndarray, votes: int, base: Classifier, names: tuple) -> Model | None:
    """One regression, on the device of `base`; None if there is a single outcome.

    Args:
        x: tempered features float32 (P, D).
        outcome: int (P,).
        names: of its random draws.
    """
    outcomes = np.unique(outcome)
    if len(outcomes) < 2:
        return None
    use = balanced(outcome, seeded(*names, "fit"))
    fitted = _regression(x[use], outcome[use], _best_strength(x, outcome, names))
    weight, bias = fitted.coef_, fitted.intercept_
    if len(outcomes) == 2:  # (-d, d), as the public code has it
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    rows = [torch.from_numpy(v.astype(np.float32)).to(base.weight) for v in (weight, bias)]
    return Model(Classifier(rows[0], rows[1]), outcomes.tolist(), votes)


def _best_strength(x: np.ndarray, outcome: np.ndarray, names: tuple) -> float:
    """C with the best mean average precision over stratified folds, the smallest among equals."""
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import StratifiedKFold

    outcomes, counts = np.unique(outcome, return_counts=True)
    folds = min(FOLDS, int(counts.min()))
    if folds < 2:
        return PLAIN_STRENGTH
    score = np.zeros(len(STRENGTHS))
    for fold, (learn, check) in enumerate(StratifiedKFold(folds).split(x, outcome)):
        learn = learn[balanced(outcome[learn], seeded(*names, fold))]
        for i, strength in enumerate(STRENGTHS):
            decision = _regression(x[learn], outcome[learn], float(strength)).decision_function(x[check])
            decision = np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
            odds = np.exp(decision - np.logaddexp.reduce(decision, 1, keepdims=True))
            score[i] += np.mean([average_precision_score(outcome[check] == k, p) for k, p in zip(outcomes, odds.T, strict=True)])
    return float(STRENGTHS[score.argmax()])


def balanced(outcome: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sorted places to learn from: all with an outcome but 0, and of 0 at most as many as the second largest outcome has."""
    most = np.sort(np.bincount(outcome))[-2]
    zero, rest = np.flatnonzero(outcome == 0), np.flatnonzero(outcome)
    return np.sort(np.concatenate([rng.permutation(zero)[:most], rest]))


def _regression(x: np.ndarray, outcome: np.ndarray, strength: float):
    """A fitted scikit-learn regression; like the public code's, it may stop at the default number of steps."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength).fit(x, outcome)
