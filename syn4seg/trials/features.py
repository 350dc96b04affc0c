"""What trials need of the network `labeling.features`: its maps of images, and the prototypes of a draw, from the stage cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.config.tree import Config
from syn4seg.data.datasets import Fold
from syn4seg.stages.similarity import FeatureView, feature_network, measured_prototypes
from syn4seg.trials.cache import StageCache
from syn4seg.trials.context import RunContext
from syn4seg.trials.keys import entry_key, feature_values

if TYPE_CHECKING:
    from syn4seg.segmenter.feature_networks import FeatureNetwork
    from syn4seg.segmenter.novel import TrainingSample


class OtherFeatures:
    """The network of a configuration whose APF and APR compare by another network than the segmenter.

    Attributes:
        key: what its maps depend on besides an image.
    """

    def __init__(self, cache: StageCache, config: Config, context: RunContext):
        self.cache, self.config, self.context = cache, config, context
        self.key = [*context.software, feature_values(config)]

    @cached_property
    def network(self) -> FeatureNetwork:
        """The network itself, loaded when an entry is missing for the first time."""
        network = feature_network(self.config, self.context.device)
        assert network is not None
        return network

    def maps(self, digests: Sequence[str], pixels: Callable[[], Iterable[np.ndarray]]) -> list[np.ndarray]:
        """Return the maps float32 (D, r, c) of images, by the digests of their pixels; `pixels` reads those."""

        def make() -> dict[str, np.ndarray]:
            return {f"map.{i}": self.network(image) for i, image in enumerate(pixels())}

        entry = self.cache.get("features", entry_key("features", self.key, digests), make)
        return [entry[f"map.{i}"] for i in range(len(digests))]

    def support_views(self, ids: Sequence[str]) -> list[FeatureView]:
        """Return the views of the support images of a draw."""
        dataset = self.context.dataset
        maps = self.maps([self.context.digest(i) for i in ids], lambda: (dataset.image(i) for i in ids))
        return [FeatureView(one, dataset.image(i).shape) for one, i in zip(maps, ids, strict=True)]

    def prototypes(
        self,
        fold: Fold,
        support: Sequence[TrainingSample],
        views: Sequence[FeatureView],
        images: Sequence[TrainingSample],
        described: Any,
    ) -> tuple[str, np.ndarray]:
        """Return the key of the prototypes of a draw, and them, float32 (1+B+M, D).

        Args:
            views: of the support samples.
            images: base images that make prototypes.
            described: digests of all these samples and their labels.
        """
        config, context, data = self.config, self.context, self.config.novel.base_data
        key = entry_key("measured", self.key, context.network, described, [len(fold.base), len(fold.novel)], data)

        def make() -> dict[str, np.ndarray]:
            of_base = (FeatureView.of(self.network, context.dataset.image(s.sample_id)) for s in images)
            arguments = config, context.segmenter, fold, support, views, images, of_base
            return {"prototypes": measured_prototypes(*arguments)}

        return key, self.cache.get("measured", key, make)["prototypes"]
