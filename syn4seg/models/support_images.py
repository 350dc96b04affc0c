"""Image-to-image: an image starts from a support image of its class instead of from noise alone (`synthesis.support`).

The pipeline is the one that is loaded anyway, seen through diffusers' image-to-image class of its family, which shares its
networks. Which support image an image starts from is named by its noise seed, so neither batch nor worker counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from syn4seg.errors import UserError
from syn4seg.models.images import to_uint8
from syn4seg.models.protocols import GeneratedBatch

if TYPE_CHECKING:
    import torch

    from syn4seg.models.embeddings import Encoded


@dataclass(frozen=True, eq=False)
class SupportPicture:
    """A support image as the pipeline sees it: its id, and RGB uint8 (size, size, 3)."""

    image_id: str
    pixels: np.ndarray


def square_around(image: np.ndarray, shown: np.ndarray, size: int) -> np.ndarray:
    """Return the largest square of an image whose middle is as near to that of its object as the image allows.

    Args:
        image: uint8 (H, W, 3).
        shown: bool (H, W), the pixels of the object; without one, the middle of the image counts.
        size: side of the result: by area where the square shrinks, else cubic.

    Returns:
        uint8 (size, size, 3).
    """
    import cv2

    height, width = shown.shape
    side = min(height, width)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    found = len(rows) > 0
    middle = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2) if found else (height / 2, width / 2)
    top, left = (int(np.clip(round(m - side / 2), 0, n - side)) for m, n in zip(middle, (height, width), strict=True))
    square = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(square)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC)


def image_to_image_class(model: str, kind: str) -> Any:
    """Return diffusers' image-to-image class of a text-to-image pipeline's class.

    Raises:
        UserError: it has none.
    """
    from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as TARGETS
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as SOURCES

    family = next((name for name, found in SOURCES.items() if found.__name__ == kind), None)
    if family is None or family not in TARGETS:
        raise UserError(
            f"synthesis.support=image_to_image: diffusers has no image-to-image class for synthesis.model={model}, a {kind}; "
            "expected Stable Diffusion 1 to 3.5, XL, FLUX.1, Qwen-Image or Z-Image; choose one of them, or synthesis.support=none"
        )
    return TARGETS[family]


def check_support_images(model: str) -> None:
    """Check that an image model can start from an image; of a hub model, model_index.json is fetched.

    Raises:
        UserError: it is no network, or diffusers has no image-to-image class for it.
    """
    from syn4seg.models.generators import generator_source
    from syn4seg.models.hub import read_index

    path = generator_source(model).path
    if path is None:
        raise UserError(
            f"synthesis.support=image_to_image, synthesis.model={model}: it draws what the prompt says and cannot start from an "
            "image; expected embedded-sd3 or a pipeline of diffusers, or synthesis.support=none"
        )
    image_to_image_class(model, read_index(path)["_class_name"])


class SupportImageGenerator:
    """A diffusion pipeline that starts from support images."""

    def __init__(self, inner: Any, pictures: Mapping[int, Sequence[SupportPicture]], strength: float):
        """Wrap a loaded generator; no weight is loaded or copied.

        Args:
            inner: a `DiffusionGenerator` or `PipelineGenerator`.
            pictures: support images by class index, of the generator's size.
            strength: how much of them is noise at the start, above 0 and at most 1.

        Raises:
            UserError: diffusers has no image-to-image class for the pipeline.
        """
        from diffusers import AutoPipelineForImage2Image

        image_to_image_class(inner.source["model"], type(inner.pipeline).__name__)
        self.inner, self.pictures, self.strength = inner, pictures, strength
        self.pipeline: Any = AutoPipelineForImage2Image.from_pipe(inner.pipeline)  # which casts nothing, unlike the classes' own
        self.pipeline.set_progress_bar_config(disable=True)

    def facts(self) -> dict[str, Any]:
        """Return the generator's facts, and that it starts from support images."""
        return self.inner.facts() | {"support": type(self.pipeline).__name__, "support_strength": self.strength}

    def chosen(self, target: int, noise_seed: int) -> SupportPicture:
        """Return the support image from which the image of class index `target` with a noise seed starts."""
        same = self.pictures[target]
        return same[noise_seed % len(same)]

    def make_for(self, targets: list[int], prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        """Make N images; a faulty one is made once more, alone and in float32.

        The same batch gives the same bytes on the same machine; in another batch an image may differ by rounding.

        Args:
            targets: class index of each image.
            prompts: see `ImageGenerator.generate`, as `encoded` and `noise_seeds`.

        Returns:
            images uint8 (N, size, size, 3); the audit of each has the id of the support image, `started_from`.

        Raises:
            UserError: the lengths differ.
        """
        if not len(targets) == len(prompts) == len(encoded) == len(noise_seeds):
            raise UserError(
                f"{len(targets)} classes, {len(prompts)} prompts, {len(encoded)} embeddings and {len(noise_seeds)} noise seeds; "
                "expected as many of each"
            )
        starts = [self.chosen(*which) for which in zip(targets, noise_seeds, strict=True)]
        audit: list[dict[str, Any]] = [{"started_from": start.image_id} for start in starts]
        images, faults = to_uint8(self._images(starts, prompts, encoded, noise_seeds, self.inner.dtype))
        for i, fault in enumerate(faults):
            if fault:
                audit[i] |= {"first_fault": fault, "retried": "float32"}
                again = self._again(starts[i], prompts[i], encoded.rows([i]), noise_seeds[i])
                if again is not None:
                    images[i], faults[i], audit[i]["precision"] = again, "", "float32"
        return GeneratedBatch(images, faults, audit)

    def _images(
        self, starts: list[SupportPicture], prompts: list[str], encoded: Encoded, noise_seeds: list[int], dtype: torch.dtype
    ) -> np.ndarray:
        """Return float32 (N, size, size, 3) in [0, 1]."""
        import inspect

        import torch
        from PIL import Image

        from syn4seg.models.pipelines import call_options

        inner = self.inner
        options: dict[str, Any] = call_options(
            self.pipeline, getattr(inner, "family", None), steps=inner.steps, guidance=inner.guidance, size=inner.size
        )
        accepted = inspect.signature(type(self.pipeline).__call__).parameters
        what = {name: value for name, value in inner.inputs(prompts, encoded, dtype).items() if name in accepted}
        noise = [torch.Generator().manual_seed(int(seed)) for seed in noise_seeds]
        photos = [Image.fromarray(start.pixels) for start in starts]
        return self.pipeline(**what, image=photos, strength=self.strength, generator=noise, **options).images

    def _again(self, start: SupportPicture, prompt: str, encoded: Encoded, noise_seed: int) -> np.ndarray | None:
        """Return a faulty image once more, alone and in float32; None if it is faulty still or that does not fit in memory."""
        import torch

        from syn4seg.models import speed as speeds

        if self.inner.speed.weights != "full":
            return None
        modules = [m for m in self.pipeline.components.values() if isinstance(m, torch.nn.Module)]
        try:
            with speeds.in_float32(modules):
                images, faults = to_uint8(self._images([start], [prompt], encoded, [noise_seed], torch.float32))
        except RuntimeError:  # most likely float32 does not fit in memory: the image stays faulty
            return None
        return None if faults[0] else images[0]


def load_image_to_image(
    load: Callable[[], Any], pictures: Mapping[int, Sequence[SupportPicture]], strength: float
) -> SupportImageGenerator:
    """Load a generator and let it start from support images, see `SupportImageGenerator`."""
    return SupportImageGenerator(load(), pictures, strength)
