"""A first-block cache for Stable Diffusion 3 that decides for every image alone, so that no image depends on its batch.

At each step the first block runs. If what it adds has hardly changed since the image's last full step, what the remaining
blocks added then is added again, and they are skipped (first-block cache, as known for batches of one; ours: one decision
per image, for its guided and unguided row together). The transformer runs image by image, so not even rounding depends on
the batch. The last block of SD3 returns no text, hence only the image stream has to be remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Memory:
    """What one image remembers from its last full step, and how many blocks it ran and skipped so far.

    `threshold` is the relative change of the first block's addition below which the rest is skipped; 0 never skips.
    """

    threshold: float = 0.0
    first: Tensor | None = None
    rest: Tensor | None = None
    ran: int = 0
    skipped: int = 0


def relative_change(now: Tensor, before: Tensor | None) -> float:
    """Return the mean absolute difference over the mean absolute value before: 0 if nothing changed; nan if something is."""
    assert before is not None
    return ((now.float() - before.float()).abs().mean() / before.float().abs().mean()).item()


class BlockChain(nn.Module):
    """All transformer blocks as one that may skip the second to the last; `memory` is that of the image at hand."""

    def __init__(self, blocks: nn.ModuleList):
        super().__init__()
        self.blocks, self.memory = blocks, Memory()

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any) -> tuple[None, Tensor]:
        """Return (None, hidden states after the last block); both inputs are those of one image, with or without guidance."""
        memory, count = self.memory, len(self.blocks)
        text, image = self.blocks[0](hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **options)
        added = image - hidden_states
        if memory.rest is not None and relative_change(added, memory.first) < memory.threshold:
            memory.ran, memory.skipped = memory.ran + 1, memory.skipped + count - 1
            return None, image + memory.rest
        begun = image
        for block in list(self.blocks)[1:]:
            text, image = block(hidden_states=image, encoder_hidden_states=text, **options)
        memory.first, memory.rest, memory.ran = added, image - begun, memory.ran + count
        return None, image


class StepCache:
    """Makes a transformer run image by image, and each image skip blocks on its own."""

    def __init__(self, transformer: Any):
        """Attach itself to `transformer` (SD3Transformer2DModel), for good."""
        self.chain = BlockChain(transformer.transformer_blocks)
        transformer.transformer_blocks = nn.ModuleList([self.chain])
        self._forward, self.memories = transformer.forward, [Memory()]
        transformer.forward = self._one_by_one

    def start(self, images: int, threshold: float) -> None:
        """Forget everything: the next steps are those of `images` new images, with this threshold (see `Memory`)."""
        self.memories = [Memory(threshold) for _ in range(images)]

    def _one_by_one(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor, **options: Any
    ) -> tuple[Tensor]:
        """Return the transformer on the rows of each image: with guidance, rows i and N + i belong to image i of N."""
        rows, images = len(hidden_states), len(self.memories)
        assert rows % images == 0, (rows, images)
        out: list[Tensor] = [hidden_states] * rows
        for i, memory in enumerate(self.memories):
            self.chain.memory = memory
            batch = torch.arange(i, rows, images, device=hidden_states.device)
            result = self._forward(
                hidden_states=hidden_states[batch],
                encoder_hidden_states=encoder_hidden_states[batch],
                pooled_projections=pooled_projections[batch],
                timestep=timestep[batch],
                **options | {"return_dict": False},
            )[0]
            out[i::images] = result.split(1)
        return (torch.cat(out),)
