"""The novel stage of a run: one classifier per ablation row and support draw, all from the same cached features.

Features are frozen, so each synthetic, support, replayed and query image is seen by the network once per run; rows,
draws and steps work on the cache. Samples arrive in any order, also while others are still being made (`draw_training`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.files import write_atomically
from syn4seg.labeling.enhance import load_on_device
from syn4seg.rundir import RunDir
from syn4seg.schema import LABEL_STAGES
from syn4seg.stages.arrivals import FeatureCache
from syn4seg.stages.plan import CLASS_NAME, HDIG
from syn4seg.stages.support import Registration, base_samples, features_of, register, support_of, support_samples
from syn4seg.tensors import load

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.samples import Sample as Record
    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import NovelSchedule, Sample

ROWS = {"support_only": ("", ""), "class_name_raw": (CLASS_NAME, "draft"), "hdig_raw": (HDIG, "draft"),
        "apf": (HDIG, "kept"), "apf_apr": (HDIG, "relabeled"), "syn4seg": (HDIG, "label")}  # fmt: skip
"""Ablation row -> (prompt bank, label column) of the synthetic samples that it trains on."""
RESULT_NAMES = {row: "apr" if row == "apf_apr" else row for row in ROWS}
"""Names of the rows in results.json."""
BASELINE = "baseline/"
"""Prefix of a baseline's name among the rows of a confusion.json."""
WAIT_SECONDS = 0.2
"""Rest where there is neither a new label nor a step that can be taken."""


def start_of(segmenter: Segmenter, prototypes: np.ndarray, fold: Fold) -> Classifier:
    """The base classifier with novel rows imprinted from the support prototypes."""
    import torch

    from syn4seg.segmenter.novel import imprint

    return imprint(base_classifier(segmenter), torch.from_numpy(prototypes[list(fold.novel_indices)]))


def base_classifier(segmenter: Segmenter) -> Classifier:
    """The 1 + B rows of the base stage, float32 on the CPU."""
    weight, bias = (t.detach().cpu().float() for t in (segmenter.weight, segmenter.bias))
    return segmenter.classifier.replaced(weight, bias)


def train_row(config: Config, fold: Fold, start: Classifier, samples: list[Sample], draw: int) -> Classifier:
    """Fine-tunes one classifier on samples that are all there (round 0)."""
    from syn4seg.segmenter.novel import train_novel

    return train_novel(start.to(training_device(config)), samples, base_classes=len(fold.base), schedule=schedule_of(config),
                       seed=seed_of(config, draw))  # fmt: skip


def schedule_of(config: Config) -> NovelSchedule:
    """How the novel stage of a config learns."""
    from syn4seg.segmenter.novel import NovelSchedule

    novel = config.novel
    per_step = {"support": novel.support_batch, "synthetic": novel.synthetic_batch, "replay": novel.replay_batch}
    return NovelSchedule(steps=novel.steps, lr=novel.lr, per_step=per_step, distill=novel.distillation,
                         background_weight=novel.background_weight, ramp=novel.ramp,
                         merge_support=config.data.base_in_support == "background")  # fmt: skip


def seed_of(config: Config, draw: int) -> int:
    """The seed of a draw's trainings: the same for every row, so rows differ by their samples alone."""
    return config.seed + 1000 * draw


def training_device(config: Config) -> str:
    """Where classifiers are trained: a GPU if this process has one, unless `placement.device` forbids it."""
    import torch

    return "cuda" if torch.cuda.is_available() and config.placement.device != "cpu" else "cpu"


def free_gpu() -> None:
    """Gives back the GPU memory that this process no longer uses, for the actors that come next."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class NovelStage:
    """Caches features as finished samples arrive, then trains every row of every draw and scores it."""

    def __init__(self, config: Config, run: RunDir, dataset: Dataset, fold: Fold):
        self.config, self.run, self.dataset, self.fold = config, run, dataset, fold
        self.segmenter = load_on_device(run, config.placement.device)
        self.real = features_of(config, self.segmenter, dataset)
        self.base = base_samples(config, dataset, fold, self.real)
        self.features = FeatureCache()
        self.registered: dict[int, Classifier] = {}
        self.loss = float("nan")  # of the last step, of whichever row

    def register(self, draw: int) -> Registration:
        """Round 0 of a draw."""
        return register(self.config, self.run, self.segmenter, self.dataset, self.fold, draw, self.base)

    def features_of(self, sample_id: str, image: np.ndarray) -> Tensor:
        """float16 (D, h, w) of a synthetic image uint8 (H, W, 3); computed once and kept."""
        from syn4seg.segmenter.network import frozen_features

        if sample_id not in self.features:
            image = self.config.segmenter.on_canvas().image(image)
            self.features.put(sample_id, frozen_features(self.segmenter, image[None])[0])
        return self.features[sample_id]

    def columns(self, bank: str, record: Record) -> dict[str, np.ndarray]:
        """By label column, what rows of a bank may train on, uint8 on the canvas: raw and filtered labels of every image, later
        ones of accepted samples only."""
        canvas, wanted = self.config.segmenter.on_canvas(), {column for of, column in ROWS.values() if of == bank}
        there = LABEL_STAGES[:2] if record.record["reason"] else LABEL_STAGES
        return {s: canvas.label(record.labels[s]) for s in there if s in wanted}

    def trust(self, draw: int, features: Tensor) -> np.ndarray | None:
        """Weight float16 (H, W) of each pixel of a synthetic image, or None where every weight is 1."""
        if self.config.novel.confidence_weight and draw not in self.registered:
            self.registered[draw] = Registration.load(self.run.draw(draw)).classifier_on("cpu")
        return trust_of(self.config, self.registered.get(draw), features)

    def train(
        self, draw: int, tell: Callable[[int, int], None], labelled: Callable[[int], bool] = lambda draw: True
    ) -> None:
        """Trains every row of a draw that has no classifier yet, on labels that may still be coming in.

        Args:
            tell: called with (steps done, steps in all).
            labelled: whether the labels of a draw are complete; it may raise to end the training.

        Raises:
            ValueError: they are complete, but some sample has none.
        """
        from syn4seg.stages.draw_training import DrawTraining

        training = DrawTraining(self, draw)
        while not training.finished:
            final = labelled(draw)  # asked first: what is finished by then is found below
            took, stepped = training.take(final), training.step()
            if stepped:
                self.loss = training.loss
                tell(*training.steps)
            elif not took and final:
                raise ValueError(f"{self.run.root}: {training.arrivals.left} samples of draw {draw} have no label; run "
                                 "`syn4seg refine` (or `syn4seg run`) with the same configuration first")  # fmt: skip
            elif not took:
                time.sleep(WAIT_SECONDS)

    def support(self, draw: int) -> list[Sample]:
        """The support samples of a draw."""
        chosen = support_of(self.config, self.dataset, self.fold, draw)
        return support_samples(self.config, self.dataset, self.fold, chosen, self.real)

    def evaluate(self, done: Callable[[int, int], None]) -> dict[int, dict[str, np.ndarray]]:
        """Confusion matrix of every draw and row, in this process; `done` is told how many queries are scored, of how many."""
        from syn4seg.stages.scoring import Scorer, evaluate_run, here

        scorer = Scorer(self.config, self.run, self.dataset, self.fold, segmenter=self.segmenter)
        return evaluate_run(self.config, self.run, self.dataset, self.fold, here(scorer), done)


def trust_of(config: Config, registered: Classifier | None, features: Tensor) -> np.ndarray | None:
    """Weight float16 (H, W) of each pixel of a synthetic image with frozen features (D, h, w), or None where every weight is 1.

    Args:
        registered: the classifier of round 0, on the CPU; only `novel.confidence_weight` above 0 needs it.
    """
    novel, size = config.novel, config.segmenter.size
    if novel.confidence_weight == 0:
        return None if novel.synthetic_weight == 1 else np.full((size, size), novel.synthetic_weight, np.float16)
    import torch

    assert registered is not None
    with torch.no_grad():
        odds = registered.pixels(features.float()[None], size).softmax(1)
    sure = odds[0].amax(0).numpy()
    return (novel.synthetic_weight * (1 - novel.confidence_weight * (1 - sure))).astype(np.float16)


def rows_of(config: Config) -> list[str]:
    """The ablation rows that a config produces."""
    plain = config.synthesis.source == "generate" and config.synthesis.class_name_bank
    return [row for row in ROWS if row != "class_name_raw" or plain]


def save_classifier(path, classifier: Classifier, learned: str = "") -> None:
    """Writes a classifier as safetensors, atomically; equal classifiers give equal bytes.

    Args:
        learned: digest of the synthetic samples that it has learned from, see `digest_of_ids`.
    """
    from safetensors.torch import save

    tensors = {"weight": classifier.weight.cpu().contiguous(), "bias": classifier.bias.cpu().contiguous()}
    facts = json.dumps({"cosine": classifier.cosine, "align_corners": classifier.align_corners, "learned": learned})
    write_atomically(path, save(tensors, metadata={"facts": facts}))  # of several keys the order would be random


def load_classifier(path) -> Classifier:
    """Reads a classifier.

    Raises:
        ValueError: it has not been trained yet, or is none.
    """
    from syn4seg.segmenter.network import Classifier

    try:
        tensors, header = load(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; run `syn4seg train` (or `syn4seg run`) before evaluating") from None
    if "facts" not in header:
        raise ValueError(f"{path}: no classifier of this version; delete it, and run the same command again")
    facts = json.loads(header["facts"])
    return Classifier(tensors["weight"], tensors["bias"], facts["cosine"], facts["align_corners"])


def learned_by(path) -> str | None:
    """What `save_classifier` was told that a classifier has learned from; None if there is no such classifier."""
    try:
        return json.loads(load(path)[1]["facts"])["learned"]
    except (FileNotFoundError, KeyError):
        return None


def digest_of_ids(ids: Iterable[str]) -> str:
    """Hash (32 hex digits) of a set of sample ids."""
    return hashlib.blake2b("\x1f".join(sorted(ids)).encode(), digest_size=16).hexdigest()
