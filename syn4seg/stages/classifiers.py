"""The classifiers of the novel stage: how they start, how they train, and the file that keeps one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.errors import DamagedError, UserError
from syn4seg.stages.rows import CONTROLS, joint_rows, rows_of
from syn4seg.stages.setup import training_device
from syn4seg.store.files import exists
from syn4seg.store.seals import write_sealed
from syn4seg.store.tensors import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from syn4seg.segmenter.network import Classifier, NetworkShape, Segmenter
    from syn4seg.segmenter.novel import Kind, NovelSchedule, TrainingSample
    from syn4seg.store.files import AnyPath
    from syn4seg.store.rundir import RunDir


def initial_classifier(segmenter: Segmenter, prototypes: np.ndarray, fold: Fold) -> Classifier:
    """Return the base classifier with novel rows imprinted from the support prototypes (method.md 5.3)."""
    import torch

    from syn4seg.segmenter.novel import imprint

    return imprint(base_classifier(segmenter), torch.from_numpy(prototypes[list(fold.novel_indices)]))


def base_classifier(segmenter: Segmenter) -> Classifier:
    """Return the 1 + B rows of the base stage, float32 on the CPU."""
    weight, bias = (t.detach().cpu().float() for t in (segmenter.weight, segmenter.bias))
    return segmenter.classifier.replaced(weight, bias)


def train_row(config: Config, fold: Fold, start: Classifier, samples: list[TrainingSample], draw: int) -> Classifier:
    """Return a classifier fine-tuned on samples all of which exist (round 0)."""
    from syn4seg.segmenter.novel import train_novel

    return train_novel(
        start.to(training_device(config)),
        samples,
        base_classes=len(fold.base),
        schedule=schedule_of(config),
        seed=seed_of(config, draw),
    )


def schedule_of(config: Config) -> NovelSchedule:
    """Return how the novel stage of a configuration learns."""
    from syn4seg.segmenter.novel import NovelSchedule

    novel = config.novel
    per_step = {"support": novel.support_batch, "synthetic": novel.synthetic_batch, "replay": novel.replay_batch}
    return NovelSchedule(
        steps=novel.steps,
        lr=novel.lr,
        per_step=per_step,
        distill=novel.distillation,
        background_weight=novel.background_weight,
        ramp=novel.ramp,
        label_stride=novel.label_stride,
        inverted_cells=novel.inverted_cells if novel.base_data == "none" else 0,
        merge_novel=("support", "replay", *(("synthetic",) if novel.merge_synthetic else ())),
        merge_base=_without_base_masks(config),
    )


def _without_base_masks(config: Config) -> tuple[Kind, ...]:
    """Return the kinds of images whose background may hold base objects that nobody annotated."""
    support: tuple[Kind, ...] = ("support",) if config.data.base_in_support == "background" else ()
    return support if config.novel.base_data == "labelled" else (*support, "synthetic")


def seed_of(config: Config, draw: int) -> int:
    """Return the seed of a draw's trainings: the same for every row, so rows differ by their samples alone."""
    return config.seed + 1000 * draw


def pixel_weights(config: Config, registered: Classifier | None, features: Tensor) -> np.ndarray | None:
    """Return the weight float16 (H, W) of each pixel of a synthetic image with frozen features (D, h, w); None: all are 1.

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
    confidence = odds[0].amax(0).numpy()
    return (novel.synthetic_weight * (1 - novel.confidence_weight * (1 - confidence))).astype(np.float16)


def save_classifier(path: AnyPath, classifier: Classifier, learned: str = "") -> None:
    """Write a classifier as safetensors, atomically; equal classifiers give equal bytes.

    Args:
        learned: digest of the synthetic samples that it was trained on, see `digest_of_ids`.
    """
    from safetensors.torch import save

    tensors = {"weight": classifier.weight.cpu().contiguous(), "bias": classifier.bias.cpu().contiguous()}
    facts = json.dumps({"cosine": classifier.cosine, "align_corners": classifier.align_corners, "learned": learned})
    write_sealed(path, save(tensors, metadata={"facts": facts}))  # of several keys the order would be random


def load_classifier(path: AnyPath) -> Classifier:
    """Read a classifier.

    Raises:
        UserError: it has not been trained yet, or the file is no classifier.
    """
    from syn4seg.segmenter.network import Classifier

    try:
        tensors, header = read_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run `syn4seg train` (or `syn4seg run`) before evaluating") from None
    if "facts" not in header:
        raise UserError(f"{path}: no classifier of this version; delete it, and run the same command again")
    try:
        facts = json.loads(header["facts"])
        return Classifier(tensors["weight"], tensors["bias"], bool(facts["cosine"]), bool(facts["align_corners"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: no classifier ({type(error).__name__}); delete it, and run the same command again") from None


def trained_segmenter(config: Config, run: RunDir, draw: int, row: str) -> tuple[Segmenter, NetworkShape]:
    """Return the whole network of a trained row, float32 on the CPU, and what the header of its checkpoint says of it.

    A network of the joint stage is its own; every other row is the base stage's network with the row's classifier.

    Raises:
        UserError: the base stage or the row has not been trained yet, or a file is damaged.
    """
    import torch

    from syn4seg.segmenter.network import read_segmenter

    path = run.draw(draw).checkpoint(row)
    if row in joint_rows(config):
        return read_segmenter(path)[:2]
    (segmenter, shape, _), classifier = read_segmenter(run.base), load_classifier(path)
    segmenter.weight, segmenter.bias = (torch.nn.Parameter(part.float()) for part in (classifier.weight, classifier.bias))
    segmenter.cosine, segmenter.align_corners = classifier.cosine, classifier.align_corners
    return segmenter, shape


def best_row(config: Config, run: RunDir, draw: int) -> str:
    """Return the row that is trained in the fullest way: the whole method, else the last of the ablation that is trained.

    Where the joint stage trained a network of that row, it is that network. Scores have no say in it, and no control is taken.

    Raises:
        UserError: none is trained yet.
    """
    joint = {row: name for name, row in joint_rows(config).items()}
    rows = [name for row in rows_of(config) if row not in CONTROLS for name in (row, joint.get(row)) if name]
    rows = [row for row in rows if exists(run.draw(draw).checkpoint(row))]
    if not rows:
        raise UserError(f"{run.root}: draw {draw} has no trained row; run `syn4seg train` (or `syn4seg run`) first")
    return rows[-1]


def read_learned_digest(path: AnyPath) -> str | None:
    """Return the digest of the samples that a classifier was trained on (see `save_classifier`); None without a classifier."""
    try:
        return json.loads(read_tensors(path)[1]["facts"])["learned"]
    except (FileNotFoundError, KeyError, ValueError, TypeError):
        return None


def digest_of_ids(ids: Iterable[str]) -> str:
    """Return a hash (32 hex digits) of a set of sample ids."""
    return hashlib.blake2b("\x1f".join(sorted(ids)).encode(), digest_size=16).hexdigest()
