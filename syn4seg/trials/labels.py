"""The label columns of a trial's images, each from the stage cache: draft, kept, relabeled, SAM's masks, label."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.labeling.components import find_components
from syn4seg.labeling.grabcut import ComponentMasks
from syn4seg.labeling.relabeling import judge_target
from syn4seg.stages.labels import BoundaryRefiner, DraftLabel, Enhancer, dense_features
from syn4seg.trials.cache import Arrays, StageCache, key_hash
from syn4seg.trials.context import Chunk, RunContext, SyntheticImage
from syn4seg.trials.keys import entry_key, label_keys

if TYPE_CHECKING:
    from syn4seg.trials.features import OtherFeatures


class LabelColumns:
    """Labels the images of a run, column after column, as a configuration says.

    Args:
        refining: the key of SAM's answers, and SAM with the settings of the configuration.
        other: the network `labeling.features`; None where it is the segmenter.
    """

    def __init__(
        self,
        cache: StageCache,
        config: Config,
        context: RunContext,
        refining: tuple[str, BoundaryRefiner],
        other: OtherFeatures | None,
    ):
        self.cache, self.config, self.context = cache, config, context
        self.canvas, self.refining, self.other = context.canvas, refining, other

    def dense(self, images: Sequence[SyntheticImage]) -> np.ndarray:
        """Return raw features float32 (N, D, h, w) of synthetic images."""

        def make() -> Arrays:
            features = [dense_features(self.context.segmenter, self.canvas, pixels) for pixels in self.context.pixels(images)]
            return {"features": np.stack([one.cpu().numpy() for one in features])}

        return self.cache.get("dense", self._dense_key(images), make)["features"]

    def _dense_key(self, images: Sequence[SyntheticImage]) -> str:
        return entry_key("dense", self.context.network, [m.digest for m in images])

    def cells(self, enhancer: Enhancer, images: Sequence[SyntheticImage]) -> list[np.ndarray]:
        """Return what APF and APR compare of synthetic images: the features float32 (D, r, c) that cover each."""
        if self.other is not None:
            return self.other.maps([m.digest for m in images], lambda: self.context.pixels(images))
        pairs = zip(self.dense(images), images, strict=True)
        return [enhancer.grid_features(self.context.tensor(features), image.shape) for features, image in pairs]

    def chunk(self, registration: Sequence[str], enhancer: Enhancer, images: Sequence[SyntheticImage]) -> Chunk:
        """Label some images, column after column; make what the cache does not have.

        An image that cannot be labelled is left out, as its row is quarantined in a run.
        """
        cache, targets, settings = self.cache, [m.target for m in images], enhancer.settings
        limits = [enhancer.thresholds[target] for target in targets]
        model_key, refiner = self.refining
        sam = key_hash([model_key, self.context.software])
        seen = [[m.target, m.shape] for m in images]
        keys = label_keys(self.config, self._dense_key(images), registration[0], seen, limits, sam, registration[1])

        def drafts() -> Arrays:
            features, labels = self.dense(images), {}
            for i, image in enumerate(images):
                with _skip_non_finite():
                    draft = enhancer.draft(self.context.tensor(features[i]), image.shape, image.target)
                    labels |= {f"label.{i}": draft.label, f"confidence.{i}": draft.confidence}
            return labels

        def filtered() -> Arrays:
            cells, before, labels = self.cells(enhancer, images), cache.get("draft", keys["draft"], drafts), {}
            for i in _rows(before):
                with _skip_non_finite():
                    draft = DraftLabel(before[f"label.{i}"], before[f"confidence.{i}"], cells[i], images[i].shape[:2])
                    draft = draft if self.other is None else enhancer.compared(draft, cells[i])
                    labels[f"label.{i}"] = enhancer.filter(draft, targets[i]).kept
            return labels

        def relabelings() -> Arrays:
            cells, before, labels = self.cells(enhancer, images), cache.get("kept", keys["kept"], filtered), {}
            for i in _rows(before):
                with _skip_non_finite():
                    result = enhancer.relabel(before[f"label.{i}"], cells[i], targets[i])
                    if not result.reason:
                        labels[f"label.{i}"] = enhancer.to_image_shape(result.label, images[i].shape)
            return labels

        def answers() -> Arrays:
            before, masks = cache.get("relabeled", keys["relabeled"], relabelings), {}
            is_sam = not isinstance(refiner.sam, ComponentMasks)
            given = self._embeddings(sam, refiner, images) if is_sam else self.context.pixels(images)
            for i in _rows(before):
                with _skip_non_finite():
                    regions = find_components(before[f"label.{i}"])
                    if isinstance(refiner.sam, ComponentMasks):
                        pixels, ious = refiner.sam.masks(given[i], regions)
                    else:
                        hints = refiner.hints(regions)
                        pixels, ious = refiner.sam.decode(self.context.tensor(given[i]), images[i].shape[:2], hints)
                    masks |= {f"masks.{i}": pixels.view(np.uint8), f"label.{i}": ious}
            return masks

        def refined() -> Arrays:
            before = cache.get("relabeled", keys["relabeled"], relabelings)
            masks, labels = cache.get("masks", keys["masks"], answers), {}
            for i in _rows(masks):
                with _skip_non_finite():
                    label = before[f"label.{i}"]
                    pixels, ious = masks[f"masks.{i}"].view(bool), masks[f"label.{i}"]
                    final = refiner.refine_label(label, find_components(label), pixels, ious)[0]
                    if not judge_target(final, targets[i], settings.min_target, settings.max_target):
                        labels[f"label.{i}"] = final
            return labels

        labels = cache.get("label", keys["label"], refined)
        return Chunk(images, {i: labels[f"label.{i}"] for i in _rows(labels)}, keys["label"])

    def _embeddings(self, sam: str, refiner: BoundaryRefiner, images: Sequence[SyntheticImage]) -> np.ndarray:
        """Return the embeddings of SAM float32 (N, C, h, w) of synthetic images."""
        key, size = entry_key("embedding", sam, [m.digest for m in images]), refiner.settings.images_per_pass

        def make() -> Arrays:
            import torch

            assert not isinstance(refiner.sam, ComponentMasks)
            pixels = self.context.pixels(images)
            parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
            return {"embedding": torch.cat([refiner.sam.embed(part)[: len(part)].cpu() for part in parts]).numpy()}

        return self.cache.get("embedding", key, make)["embedding"]


def _skip_non_finite() -> contextlib.suppress:
    """Return a context that skips an image whose numbers are not finite, as a run quarantines it."""
    return contextlib.suppress(FloatingPointError)


def _rows(arrays: Arrays) -> list[int]:
    """Return the places of the images that have a label (or masks) in an entry."""
    return sorted(int(name[6:]) for name in arrays if name.startswith("label."))
