"""Round 0: the segmenter learns the novel classes from the support set alone; its prototypes and thresholds are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config import Config, SupportQuantile
from syn4seg.data.datasets import Dataset, Fold, image_to_canvas, label_to_canvas
from syn4seg.data.support import support_label
from syn4seg.labeling.filtering import held_out_similarities
from syn4seg.labeling.prototypes import background_prototype, support_prototypes
from syn4seg.rundir import Draw, RunDir, write_atomically, write_json
from syn4seg.stages.setup import support_of

if TYPE_CHECKING:
    import torch

    from syn4seg.segmenter.network import Classifier, Segmenter
    from syn4seg.segmenter.novel import Sample


@dataclass(frozen=True)
class Registration:
    """What labelling needs of one support draw.

    Attributes:
        weight: float32 (1+B+M, D), classifier rows after round 0.
        bias: float32 (1+B+M,).
        prototypes: float32 (1+B+M, D), unit global prototypes by class index, background first.
        thresholds: lambda_keep by novel class index.
    """

    weight: np.ndarray
    bias: np.ndarray
    prototypes: np.ndarray
    thresholds: dict[int, float]

    def save(self, draw: Draw) -> None:
        """Writes support.safetensors."""
        from safetensors.numpy import save

        tensors = {"weight": self.weight, "bias": self.bias, "prototypes": self.prototypes}
        facts = {"thresholds": json.dumps({str(k): v for k, v in self.thresholds.items()})}
        write_atomically(draw.support, save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata=facts))

    @staticmethod
    def load(draw: Draw) -> Registration:
        """Reads support.safetensors.

        Raises:
            ValueError: the draw has not been registered yet.
        """
        from safetensors import safe_open

        if not draw.support.is_file():
            raise ValueError(
                f"{draw.support}: missing; run `syn4seg refine` or `syn4seg run`, which register the support set"
            )
        with safe_open(draw.support, "np") as f:
            facts = json.loads(f.metadata()["thresholds"])
            parts = {key: f.get_tensor(key) for key in ("weight", "bias", "prototypes")}
        return Registration(**parts, thresholds={int(k): float(v) for k, v in facts.items()})

    def classifier_on(self, device: torch.device | str) -> Classifier:
        """The classifier on a device."""
        import torch

        from syn4seg.segmenter.network import Classifier

        return Classifier(torch.from_numpy(self.weight).to(device), torch.from_numpy(self.bias).to(device))


def support_samples(config: Config, segmenter: Segmenter, dataset: Dataset, fold: Fold,
                    support: dict[int, list[str]]) -> list[Sample]:  # fmt: skip
    """Frozen features and class-index labels of the support images, on the canvas."""
    from syn4seg.segmenter.network import frozen_features
    from syn4seg.segmenter.novel import Sample

    size, samples = config.segmenter.size, []
    for target, ids in support.items():
        for image_id in ids:
            label = support_label(dataset.mask(image_id), fold, target, base_in_support=config.data.base_in_support)
            features = frozen_features(segmenter, image_to_canvas(dataset.image(image_id), size)[None])[0]
            samples.append(Sample(f"{target}-{image_id}", features, label_to_canvas(label, size), "support"))
    return samples


def replay_samples(config: Config, segmenter: Segmenter, dataset: Dataset, fold: Fold) -> list[Sample]:
    """Frozen features and base labels (novel objects background) of the replayed base images.

    The images are drawn from the train list by a named seed; support annotations are never part of them.
    """
    from syn4seg.data.embedded import seeded
    from syn4seg.segmenter.network import frozen_features
    from syn4seg.segmenter.novel import Sample

    order = seeded("replay", config.seed).permutation(len(dataset.train))[: config.novel.replay_images]
    table, size = fold.to_base_index, config.segmenter.size
    samples = []
    for image_id in sorted(dataset.train[i] for i in order):
        features = frozen_features(segmenter, image_to_canvas(dataset.image(image_id), size)[None])[0]
        samples.append(Sample(image_id, features, label_to_canvas(table[dataset.mask(image_id)], size), "replay"))
    return samples


def register(config: Config, run: RunDir, segmenter: Segmenter, dataset: Dataset, fold: Fold, draw: int,
             replay: list[Sample]) -> Registration:  # fmt: skip
    """Draws the support set, computes prototypes and thresholds, trains round 0; done once per draw and kept.

    Args:
        replay: `replay_samples(...)`, shared by the draws of a run.
    """
    paths = run.draw(draw)
    if paths.support.is_file():
        return Registration.load(paths)
    from syn4seg.stages.novel import start_of, train_row

    support = support_of(config, dataset, fold, draw)
    samples = support_samples(config, segmenter, dataset, fold, support)
    prototypes = _prototypes(config, segmenter, fold, samples, replay)
    start = start_of(segmenter, prototypes, fold)
    classifier = train_row(config, fold, start, [*samples, *replay], draw)
    made = Registration(classifier.weight.numpy(), classifier.bias.numpy(), prototypes,
                        _thresholds(config, fold, samples))  # fmt: skip
    write_json(paths.support_json, {
        "draw": draw, "shots": config.data.shots, "support": {fold.names[k - 1]: ids for k, ids in support.items()},
        "lambda_keep": {fold.index_names[k]: v for k, v in made.thresholds.items()},
    })  # fmt: skip
    made.save(paths)
    return made


def _prototypes(
    config: Config, segmenter: Segmenter, fold: Fold, support: list[Sample], replay: list[Sample]
) -> np.ndarray:
    """Unit global prototypes (1+B+M, D): novel and background from the support set, base from replayed base images."""
    import torch

    from syn4seg.segmenter.network import upsample

    features = [s.features.float().numpy() for s in support]
    labels, names, size = [s.label for s in support], fold.index_names, config.segmenter.size
    novel = support_prototypes(features, labels, list(fold.novel_indices), [names[i] for i in fold.novel_indices])
    with torch.no_grad():
        guesses = [
            upsample(segmenter.classifier(s.features.float()[None]), (size, size))[0].argmax(0).byte().numpy()
            for s in support
        ]
    background = background_prototype(features, labels, guesses)
    base = np.zeros((len(fold.base), novel.shape[1]), np.float32)
    shown = [i for i in range(1, 1 + len(fold.base)) if any((s.label == i).any() for s in replay)]
    if shown:
        base[np.array(shown) - 1] = support_prototypes(
            [s.features.float().numpy() for s in replay], [s.label for s in replay], shown
        )
    return np.concatenate([background[None], base, novel]).astype(np.float32)


def _thresholds(config: Config, fold: Fold, support: list[Sample]) -> dict[int, float]:
    limit = config.labeling.lambda_keep
    if not isinstance(limit, SupportQuantile):
        return dict.fromkeys(fold.novel_indices, float(limit))
    features, labels = [s.features.float().numpy() for s in support], [s.label for s in support]
    values = {k: held_out_similarities(features, labels, k) for k in fold.novel_indices}
    if config.data.shots == 1:  # parts of one object resemble each other more than two objects do: pool the classes
        pooled = np.concatenate(list(values.values()))
        values = dict.fromkeys(values, pooled)
    return {k: float(np.quantile(v, limit.support_quantile)) for k, v in values.items()}
