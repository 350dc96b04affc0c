"""Release gate of the generator's weights: does a classifier trained on drawn images see in generated ones what was asked for?

It sees pixels only. It reads how many objects of each class an image shows (none, one, two), its background, and the colour
where all its objects have one class.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.data import embedded
from tools.checkpoint import Journal
from tools.generator import product_prompts, prompts_of, scenes, to_tensor

CLASSES, COLOURS, BACKGROUNDS = embedded.CLASSES, tuple(embedded.COLOURS), tuple(embedded.BACKGROUNDS)


def targets_of(prompts: list[str]) -> Tensor:
    """Return int64 (N, 5): subject's class, its count, the other class, subject's colour, background; -1 for what is not asked."""
    return torch.tensor([_targets(prompt) for prompt in prompts])


def _targets(prompt: str) -> list[int]:
    singular = {embedded._plural(name): name for name in CLASSES}
    words = [singular.get(word, word) for word in prompt.split()]
    place = words.index("beside") if "beside" in words else len(words)
    count = next(embedded.COUNTS[word] for word in words if word in embedded.COUNTS)
    lists = ((CLASSES, words[:place]), (CLASSES, words[place:]), (COLOURS, words[:place]), (BACKGROUNDS, words))
    subject, other, colour, background = (next((c.index(w) for w in part if w in c), -1) for c, part in lists)
    return [subject, count, other, colour, background]


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
    """Four strided blocks, pooled by maximum and by mean; images (N, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 80, 128, 192)
        self.body = nn.Sequential(*map(_down, widths, widths[1:]))
        self.head = nn.Linear(2 * widths[-1], 3 * len(CLASSES) + len(COLOURS) + len(BACKGROUNDS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of the count of each class (N, 3, 16), of the colour (N, 8) and of the background (N, 6)."""
        seen = self.body(x)
        out = self.head(torch.cat([seen.amax((2, 3)), seen.mean((2, 3))], 1))
        counts, colour, background = out.split([3 * len(CLASSES), len(COLOURS), len(BACKGROUNDS)], 1)
        return counts.view(len(x), 3, len(CLASSES)), colour, background


def shown(words: Tensor) -> Tensor:
    """Return counts int64 (N, 16) of each class by the targets (N, 5)."""
    counts, rows = torch.zeros(len(words), len(CLASSES), dtype=torch.long), torch.arange(len(words))
    counts[rows, words[:, 0]] = words[:, 1]
    beside = words[:, 2] >= 0
    counts[rows[beside], words[beside, 2]] = 1
    return counts


def drawn(prompts: list[str], seed: str, start: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 64, 64) in [-1, 1] and targets (N, 5) of scenes drawn after `prompts`."""
    return to_tensor(scenes(prompts, seed, start)[0]), targets_of(prompts)


def train_judge(folder: Path, steps: int = 2000, batch: int = 64) -> Judge:
    """Train on drawn images only; slight noise and blur, so that it reads shapes and not pixels."""
    journal, judge = Journal(folder / "judge"), Judge().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    state, done = journal.load(), 0
    opt = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, total_steps=steps + 1, pct_start=0.1)
    if state:
        judge.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
    for step in range(done, steps):
        x, words = drawn(prompts_of("judge", step * batch, batch), "judge", step * batch)
        gen = torch.Generator().manual_seed(step)
        if step % 2:
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = x + 0.05 * torch.randn(x.shape, generator=gen)
        named = (words[:, 3:] >= 0) & torch.stack([words[:, 2] < 0, words[:, 4] >= 0], 1)
        with torch.autocast("cpu", torch.bfloat16):
            counts, *others = judge(x.contiguous(memory_format=torch.channels_last))
        loss = 4 * F.cross_entropy(counts.float(), shown(words))
        for k, out in enumerate(others):
            loss = loss + 0.3 * F.cross_entropy(out.float()[named[:, k]], words[named[:, k], 3 + k])
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            journal.log(step=step + 1, loss=round(loss.item(), 4), **accuracy(judge, *drawn(product_prompts(512), "judge-held")))
        journal.save(
            {"net": judge.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict(), "step": step + 1},
            force=step + 1 == steps,
        )
    return judge.eval()


def accuracy(judge: Judge, images: Tensor, words: Tensor) -> dict[str, float]:
    """Return the share of images that are right in each respect.

    "class": the subject's class is among the classes shown; "count": as many of it as asked; "second": the other class is shown,
    where one was asked for; "nothing else": no class is shown that was not asked for; "colour" where there is no second class.
    """
    judge.eval()
    with torch.no_grad():
        outs = [torch.cat(parts) for parts in zip(*(judge(part) for part in images.split(128)), strict=True)]
    judge.train()
    counts, colour, background = (out.argmax(1) for out in outs)
    asked, rows, two = shown(words), torch.arange(len(words)), words[:, 2] >= 0
    right = {
        "class": counts[rows, words[:, 0]] > 0,
        "count": counts[rows, words[:, 0]] == words[:, 1],
        "second": counts[rows[two], words[two, 2]] > 0,
        "nothing else": ((counts > 0) <= (asked > 0)).all(1),
        "class, alone": (counts[rows, words[:, 0]] > 0)[~two],
        "colour": (colour == words[:, 3])[~two & (words[:, 3] >= 0)],
        "background": (background == words[:, 4])[words[:, 4] >= 0],
    }
    return {name: round(hits.float().mean().item(), 4) for name, hits in right.items()}


def generated(folder: Path, prompts: list[str], batch: int = 32, steps: int = 16, guidance: float = 3.0) -> np.ndarray:
    """Return images uint8 (N, 64, 64, 3) that the pipeline in `folder` makes of `prompts`, through the package's own loaders."""
    from syn4seg.models.generators import load_generator, load_text_encoder

    encoder = load_text_encoder(str(folder), device="cpu")
    generator = load_generator(str(folder), steps=steps, guidance=guidance, size=embedded.SIZE, device="cpu")
    parts = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        parts.append(generator.generate(part, encoder.encode(part), list(range(start, start + len(part))))[0])
    return np.concatenate(parts)


def nearest(images: np.ndarray, scenes_seen: int) -> np.ndarray:
    """Return for each image (N, 64, 64, 3) its distance to the nearest training scene: RMS in grey levels at 16 x 16 pixels."""
    small = F.avg_pool2d(to_tensor(images), 4).flatten(1) * 127.5
    best = torch.full((len(small),), float("inf"))
    for start in range(0, scenes_seen, 1024):
        seen = scenes(prompts_of("pool", start, 1024), "pool", start)[0]
        pool = F.avg_pool2d(to_tensor(seen), 4).flatten(1) * 127.5
        best = torch.minimum(best, torch.cdist(small, pool).amin(1))
    return (best / small.shape[1] ** 0.5).numpy()


def contact_sheet(images: np.ndarray, prompts: list[str], columns: int = 8) -> np.ndarray:
    """Return uint8 (H, W, 3): the images, three times as large, each above its prompt."""
    import cv2

    tiles = []
    for image, prompt in zip(images, prompts, strict=True):
        tile = np.full((232, 200, 3), 255, np.uint8)
        tile[4:196, 4:196] = cv2.resize(image, (192, 192), interpolation=cv2.INTER_CUBIC)
        for line, part in enumerate((prompt[:38], prompt[38:])):
            cv2.putText(tile, part, (4, 208 + 13 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.29, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])
