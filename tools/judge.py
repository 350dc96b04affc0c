"""Release gate of the generator's weights: does a classifier trained on drawn images read the prompt off generated ones?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.data import embedded
from tools.checkpoint import Journal
from tools.generator import training_prompt

HEADS = {"class": embedded.CLASSES, "colour": tuple(embedded.COLOURS), "background": tuple(embedded.BACKGROUNDS)}


def targets(prompt: str) -> list[int]:
    """Return index of the prompt's word in each of `HEADS`."""
    words = prompt.split()
    singular = {embedded._plural(name): name for name in embedded.CLASSES}
    words = [singular.get(w, w) for w in words]
    return [next(i for i, choice in enumerate(choices) if choice in words) for choices in HEADS.values()]


def _down(inner: int, outer: int) -> nn.Sequential:
    """Return two convolutions, the first with stride 2."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, 2, 1),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
        nn.Conv2d(outer, outer, 3, 1, 1),
        nn.BatchNorm2d(outer),
        nn.ReLU(),
    )


class Judge(nn.Module):
    """Four strided convolutions and one linear head per word; images (N, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.body = nn.Sequential(*map(_down, widths, widths[1:]))
        self.heads = nn.ModuleList(nn.Linear(128, len(choices)) for choices in HEADS.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = self.body(x).amax((2, 3))
        return [head(pooled) for head in self.heads]


def drawn(seed: str, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 64, 64) in [-1, 1] and word indices (N, 3) of freshly drawn scenes."""
    images, words = [], []
    for i in range(start, start + count):
        prompt = training_prompt(embedded.seeded(seed, i))
        images.append(
            embedded.draw(embedded.scene_of_prompt(prompt, int(embedded.seeded(seed, "n", i).integers(2**62)), company=0))[0]
        )
        words.append(targets(prompt))
    return to_tensor(np.stack(images)), torch.tensor(words)


def to_tensor(images: np.ndarray) -> Tensor:
    """Return (N, 3, H, W) float in [-1, 1] of uint8 (N, H, W, 3)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_judge(folder: Path, steps: int = 600, batch: int = 48) -> Judge:
    """Train on drawn images only; slight noise and blur, so that it reads shapes and not pixels."""
    journal, judge = Journal(folder / "judge"), Judge()
    state, done = journal.load(), 0
    opt = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    if state:
        judge.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
    for step in range(done, steps):
        x, words = drawn("judge", step * batch, batch)
        gen = torch.Generator().manual_seed(step)
        if step % 2:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = x + 0.05 * torch.randn(x.shape, generator=gen)
        loss = sum((F.cross_entropy(out, words[:, k]) for k, out in enumerate(judge(x))), torch.zeros(()))
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            journal.log(step=step + 1, loss=round(loss.item(), 4), **accuracy(judge, *drawn("judge-held", 0, 512)))
        journal.save(
            {"net": judge.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict(), "step": step + 1},
            force=step + 1 == steps,
        )
    return judge.eval()


def accuracy(judge: Judge, images: Tensor, words: Tensor) -> dict[str, float]:
    """Return share of images on which each word is read correctly."""
    judge.eval()
    with torch.no_grad():
        outs = [torch.cat(parts) for parts in zip(*(judge(part) for part in images.split(128)), strict=True)]
    judge.train()
    return {
        name: round((out.argmax(1) == words[:, k]).float().mean().item(), 4)
        for k, (name, out) in enumerate(zip(HEADS, outs, strict=True))
    }


def judge_generator(
    judge: Judge, folder: Path, count: int = 512, batch: int = 32, steps: int = 16, guidance: float = 3.0
) -> tuple[dict[str, float], np.ndarray]:
    """Return accuracies on `count` images generated from fresh prompts by the pipeline in `folder`, and the images."""
    from syn4seg.models.generators import load_generator, load_text_encoder

    prompts = [training_prompt(embedded.seeded("judge-prompt", i)) for i in range(count)]
    encoder, generator = (
        load_text_encoder(str(folder)),
        load_generator(str(folder), steps=steps, guidance=guidance, size=embedded.SIZE, device="cpu"),
    )
    parts = []
    for start in range(0, count, batch):
        part = prompts[start : start + batch]
        parts.append(generator.generate(part, encoder.encode(part), list(range(start, start + len(part))))[0])
    images = np.concatenate(parts)
    return accuracy(judge, to_tensor(images), torch.tensor([targets(p) for p in prompts])), images
