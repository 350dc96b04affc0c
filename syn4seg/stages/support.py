"""Round 0: the segmenter learns the novel classes from the support set alone; its prototypes and thresholds are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.sections import SupportQuantile
from syn4seg.config.tree import Config
from syn4seg.data.datasets import Dataset, Fold
from syn4seg.data.support import support_label
from syn4seg.errors import DamagedError, UserError
from syn4seg.labeling.filtering import held_out_similarities
from syn4seg.labeling.prototypes import background_prototype, normalize, support_prototypes
from syn4seg.schema import BACKGROUND, UNLABELED
from syn4seg.stages.base_data import BaseSamples, Features, Photos, base_photos
from syn4seg.stages.classifiers import base_classifier, initial_classifier, train_row
from syn4seg.stages.setup import canvas_of, support_of
from syn4seg.stages.similarity import FeatureView, base_predictions, feature_network, measured_prototypes, viewed
from syn4seg.store.files import exists
from syn4seg.store.rundir import Draw, RunDir
from syn4seg.store.seals import write_sealed, write_sealed_json
from syn4seg.store.tensors import read_tensors

if TYPE_CHECKING:
    import torch

    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import TrainingSample
    from syn4seg.store.files import AnyPath


TENSORS = ("weight", "bias", "prototypes", "measured")
"""Arrays of a registration; the last one may be missing."""


@dataclass(frozen=True)
class Registration:
    """What labeling needs of one support draw.

    Attributes:
        weight: float32 (1+B+M, D), classifier rows after round 0.
        bias: float32 (1+B+M,).
        prototypes: float32 (1+B+M, D), unit global prototypes by class index, background first.
        thresholds: lambda_keep by novel class index.
        cosine: whether the classifier compares directions; like `align_corners` an attribute of the classifier.
        measured: float32 (1+B+M, D'), what APF and APR compare with in place of `prototypes`, in the features of the network
            `labeling.features`; None: that is the segmenter.
    """

    weight: np.ndarray
    bias: np.ndarray
    prototypes: np.ndarray
    thresholds: dict[int, float]
    cosine: bool = False
    align_corners: bool = False
    measured: np.ndarray | None = None

    def save(self, path: AnyPath) -> None:
        """Write a registration: support.safetensors, or that of a later round; equal registrations give equal bytes."""
        from safetensors.numpy import save

        tensors = {k: np.ascontiguousarray(getattr(self, k)) for k in TENSORS if getattr(self, k) is not None}
        thresholds = {str(k): v for k, v in self.thresholds.items()}
        facts = {"thresholds": thresholds, "cosine": self.cosine, "align_corners": self.align_corners}
        write_sealed(path, save(tensors, metadata={"facts": json.dumps(facts)}))  # several keys have no fixed order

    @staticmethod
    def load(draw: Draw, round_: int = 1) -> Registration:
        """Read what a round of labelling starts from; support.safetensors also in its older form with a metadata key per fact.

        Raises:
            UserError: the draw has not been registered yet.
        """
        path = draw.support if round_ == 1 else draw.drafter
        try:
            tensors, header = read_tensors(path)
        except FileNotFoundError:
            raise UserError(f"{path}: missing; run `syn4seg refine` or `syn4seg run`, which register the support set") from None
        try:
            facts = json.loads(header["facts"]) if "facts" in header else {key: json.loads(text) for key, text in header.items()}
            arrays = {key: tensors[key].numpy() for key in TENSORS if key in tensors or key != "measured"}
            thresholds = {int(k): float(v) for k, v in facts["thresholds"].items()}
            flags = [bool(facts.get(key, False)) for key in ("cosine", "align_corners")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(f"{path}: no registration ({type(error).__name__}); delete it and run again") from None
        return Registration(**arrays, thresholds=thresholds, cosine=flags[0], align_corners=flags[1])

    def classifier_on(self, device: torch.device | str) -> Classifier:
        """Return the classifier on a device."""
        import torch

        from syn4seg.segmenter.network import Classifier

        weight, bias = (torch.from_numpy(values).to(device) for values in (self.weight, self.bias))
        return Classifier(weight, bias, self.cosine, self.align_corners)


def feature_extractor(config: Config, segmenter: Segmenter, photos: Photos) -> Features:
    """Return a function from image ids to frozen features; it computes them anew at every call."""
    from syn4seg.segmenter.network import frozen_features

    canvas = canvas_of(config)
    return lambda ids: [frozen_features(segmenter, canvas.image(photos.image(i))[None])[0] for i in ids]


def support_samples(
    config: Config, dataset: Dataset, fold: Fold, support: dict[int, list[str]], features: Features
) -> list[TrainingSample]:
    """Return the support images as samples: frozen features and labels by class index, on the canvas."""
    from syn4seg.segmenter.novel import TrainingSample

    canvas, samples = canvas_of(config), []
    for target, ids in support.items():
        for shot, (image_id, feature) in enumerate(zip(ids, features(ids), strict=True)):
            label = support_label(dataset.mask(image_id), fold, target, base_in_support=config.data.base_in_support)
            name = f"{target}-{image_id}" + (f"+{ids[:shot].count(image_id)}" if image_id in ids[:shot] else "")
            samples.append(TrainingSample(name, feature, canvas.label(label), "support"))
    return samples


def register(
    config: Config, run: RunDir, segmenter: Segmenter, dataset: Dataset, fold: Fold, draw: int, base: BaseSamples
) -> Registration:
    """Draw the support set, compute prototypes and thresholds, train round 0 (method.md 2); done once per draw and kept.

    Args:
        base: `base_samples(...)`, shared by the draws of a run.
    """
    paths = run.draw(draw)
    if exists(paths.support):
        return Registration.load(paths)
    support = support_of(config, dataset, fold, draw)
    samples = support_samples(config, dataset, fold, support, feature_extractor(config, segmenter, dataset))
    registration = compute_registration(config, segmenter, fold, samples, base, draw)
    registration = _measured(registration, config, segmenter, dataset, fold, support, samples, base)
    write_sealed_json(
        paths.support_json,
        {
            "draw": draw,
            "shots": config.data.shots,
            "support": {fold.names[k - 1]: ids for k, ids in support.items()},
            "lambda_keep": {fold.index_names[k]: v for k, v in registration.thresholds.items()},
            "support_from": config.data.support_from,
            "replayed": [s.sample_id for s in base.replayed],
            "base_prototypes_from": [s.sample_id for s in base.prototype_images],
        },
    )
    registration.save(paths.support)
    return registration


def compute_registration(
    config: Config, segmenter: Segmenter, fold: Fold, support: list[TrainingSample], base: BaseSamples, draw: int
) -> Registration:
    """Compute round 0: prototypes, thresholds, and a classifier that has seen the support set and replayed base images only."""
    prototypes = _prototypes(config, segmenter, fold, support, base.prototype_images)
    start = initial_classifier(segmenter, prototypes, fold)
    trained = train_row(config, fold, start, [*support, *base.replayed], draw)
    rows, thresholds = (trained.weight.cpu().numpy(), trained.bias.cpu().numpy()), keep_thresholds(config, fold, support)
    return Registration(*rows, prototypes, thresholds, start.cosine, start.align_corners)


def _measured(
    registration: Registration,
    config: Config,
    segmenter: Segmenter,
    dataset: Dataset,
    fold: Fold,
    support: dict[int, list[str]],
    samples: list[TrainingSample],
    base: BaseSamples,
) -> Registration:
    """Return a registration with prototypes and thresholds of `labeling.features`; itself where that is the segmenter."""
    network = feature_network(config, segmenter.weight.device)
    if network is None:
        return registration
    photos, images = base_photos(config, dataset), base.prototype_images
    views = [FeatureView.of(network, dataset.image(sample_id)) for ids in support.values() for sample_id in ids]
    of_base = (FeatureView.of(network, photos.image(s.sample_id)) for s in images)
    measured = measured_prototypes(config, segmenter, fold, samples, views, images, of_base)
    return replace(registration, measured=measured, thresholds=keep_thresholds(config, fold, samples, views))


def _prototypes(
    config: Config, segmenter: Segmenter, fold: Fold, support: list[TrainingSample], images: list[TrainingSample]
) -> np.ndarray:
    """Return unit global prototypes (1+B+M, D): novel and background from the support set, base from base images.

    A base class that no image holds has none (0); without base labels its classifier row stands for it (`inversion`).
    """
    features, labels = _arrays(support)
    corners, indices = segmenter.align_corners, list(fold.novel_indices)
    novel = support_prototypes(features, labels, indices, [fold.index_names[i] for i in indices], corners)
    predictions, annotated = base_predictions(config, segmenter, support), config.novel.base_data == "labelled"
    background = _background(features, labels, predictions, images, corners, annotated)
    base = np.zeros((len(fold.base), novel.shape[1]), np.float32)
    if not annotated:
        base = _inverted_prototypes(config, segmenter, support)
    features, labels = _arrays(images)
    present = [i for i in range(1, 1 + len(fold.base)) if any((label == i).any() for label in labels)]
    if present:
        base[np.array(present) - 1] = support_prototypes(features, labels, present, align_corners=corners)
    return np.concatenate([background[None], base, novel]).astype(np.float32)


def _inverted_prototypes(config: Config, segmenter: Segmenter, support: list[TrainingSample]) -> np.ndarray:
    """Return unit prototypes (B, D) of base classes without images: means of inverted cells, else the classifier's rows."""
    from syn4seg.segmenter.inversion import invert_classifier
    from syn4seg.segmenter.novel import free_cells

    base = base_classifier(segmenter)
    cells = free_cells(support, len(base.weight), base.align_corners)
    found, classes = invert_classifier(base, cells, config.novel.inverted_cells, config.seed)
    rows = [found[classes == k].mean(0) if (classes == k).any() else base.weight[k] for k in range(1, len(base.weight))]
    return normalize(np.stack([row.numpy() for row in rows]))


def _background(
    features: list[np.ndarray],
    labels: list[np.ndarray],
    predictions: list[np.ndarray],
    images: list[TrainingSample],
    align_corners: bool,
    annotated: bool,
) -> np.ndarray:
    """Return the background prototype (D,) from the first of these that has a background pixel: support pixels on which the base
    model agrees, all support pixels, base images; zero for data in which every pixel has a class.

    Args:
        annotated: base classes have masks; without, support pixels that the base model gives a class are never background.
    """
    agreed = [np.where(base == BACKGROUND, label, UNLABELED) for label, base in zip(labels, predictions, strict=True)]
    for maps, masks in ((features, agreed), *([(features, labels)] if annotated else []), _arrays(images)):
        if any((mask == BACKGROUND).any() for mask in masks):
            return background_prototype(maps, masks, align_corners=align_corners)
    return np.zeros(features[0].shape[0], np.float32)


def _arrays(samples: list[TrainingSample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [s.features.float().numpy() for s in samples], [s.label for s in samples]


def keep_thresholds(
    config: Config, fold: Fold, support: list[TrainingSample], views: Sequence[FeatureView] | None = None
) -> dict[int, float]:
    """Return lambda_keep by novel class index: the number of the configuration, or a quantile of held-out similarities.

    Args:
        views: of the support samples, where another network than the segmenter measures similarity.
    """
    limit = config.labeling.lambda_keep
    if not isinstance(limit, SupportQuantile):
        return dict.fromkeys(fold.novel_indices, float(limit))
    arrays = _arrays(support) if views is None else viewed(canvas_of(config), support, views)
    corners = config.segmenter.align_corners and views is None
    values = {k: held_out_similarities(*arrays, k, corners) for k in fold.novel_indices}
    if config.data.shots == 1:  # parts of one object resemble each other more than two objects do: pool the classes
        values = dict.fromkeys(values, np.concatenate(list(values.values())))
    return {k: float(np.quantile(v, limit.support_quantile)) for k, v in values.items()}
