"""The embedded SAM: a `segment_anything` Sam of 0.5 M parameters, trained here on random shapes only.

It learns from scenes painted like the embedded world but holding shapes of `build.shapes`, so it has never seen the
silhouette of any of the 16 classes; its score is measured on those classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from segment_anything.modeling import Sam
from torch import Tensor, nn

from syn4seg.data import embedded
from syn4seg.models.sam import SamRefiner, build_sam, decode
from tools.checkpoint import Journal, write_card
from tools.shapes import LIKENESS, random_outline

CONFIG = {
    "img_size": 64,
    "patch_size": 4,
    "embed_dim": 96,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": 3,
    "out_chans": 64,
    "mask_in_chans": 16,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "decoder_mlp_dim": 128,
    "iou_head_dim": 64,
}
SEED = 20
SHAPES = 4000  # outlines to draw from; every scene turns size, stretch, colour and occlusion afresh
SMALLEST = 20  # pixels; smaller visible pieces are no targets


def pieces(labels: np.ndarray) -> list[np.ndarray]:
    """Return masks bool (H, W) of the connected components (8 neighbours) of each non-zero label, in order of label."""
    pieces_ = []
    for value in np.unique(labels[labels > 0]):
        count, parts = cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=8)
        pieces_ += [parts == i for i in range(1, count)]
    return [mask for mask in pieces_ if mask.sum() >= SMALLEST]


def tight_box(mask: np.ndarray) -> np.ndarray:
    """Return XYXY float32 (4,): first and last column and row of a mask, as pixel indices."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max(), y.max()], np.float32)


def jittered(box: np.ndarray, rng: np.random.Generator, spread: np.ndarray | float) -> np.ndarray:
    """Return the box with its four sides moved by uniform noise in +-`spread` pixels, kept inside the image and not empty."""
    moved = np.clip(box + rng.uniform(-1, 1, 4) * spread, 0, embedded.SIZE - 1)
    low, high = np.minimum(moved[:2], moved[2:] - 2), np.maximum(moved[2:], moved[:2] + 2)
    return np.clip(np.concatenate([low, high]), 0, embedded.SIZE - 1).astype(np.float32)


def _weathered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return half of the images a little soft, noisy or flat, as a generator's are."""
    if rng.random() < 0.5:
        return image
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0)).astype(np.float32)
    soft = (soft - 128) * rng.uniform(0.8, 1.1) + 128 + rng.normal(0, rng.uniform(0, 8), image.shape)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


def _crowded(scene: embedded.Scene, rng: np.random.Generator) -> embedded.Scene:
    """Return half of the scenes drawn together, so that objects touch and hide each other; some of them in one colour."""
    if rng.random() < 0.5:
        return scene
    pull, same = rng.uniform(0.3, 1.0), {}
    if rng.random() < 0.4:
        same = {"colour": scene.things[0].colour, "pattern": scene.things[0].pattern}
    return replace(scene, things=tuple(replace(t, x=t.x * pull, y=t.y * pull, **same) for t in scene.things))


def training_example(name: object, outlines: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return one scene of random shapes: image uint8 (S, S, 3), masks bool (R, S, S), boxes float32 (R, 4) moved by 10 %."""
    rng = embedded.seeded("sam", "scene", name)
    masks: list[np.ndarray] = []
    while not masks:
        scene = _crowded(embedded.sample_scene(rng), rng)
        chosen = [outlines[int(rng.integers(len(outlines)))] for _ in scene.things]
        image, owner = embedded.compose(scene, chosen)
        masks = pieces(owner)
    boxes = []
    for mask in masks:
        box = tight_box(mask)
        sides = np.tile(box[2:] - box[:2] + 1, 2)
        boxes.append(jittered(box, rng, np.maximum(0.2 * sides * rng.random(), 1.0)))
    return _weathered(image, rng), np.stack(masks), np.stack(boxes)


def loss_of(logits: Tensor, quality: Tensor, truth: Tensor) -> Tensor:
    """Return 2 BCE + dice of the single mask, half of it for the best of the other three, and the error of the IoU head.

    Args:
        logits: (R, 4, S, S). quality: (R, 4), predicted IoU. truth: float (R, S, S) of 0 and 1.
    """
    target = truth[:, None].expand_as(logits)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    chance = logits.sigmoid()
    dice = 1 - (2 * (chance * target).sum((2, 3)) + 1) / (chance.sum((2, 3)) + target.sum((2, 3)) + 1)
    per_mask = 2 * bce + dice
    predicted = (logits > 0).float()
    common = (predicted * target).sum((2, 3))
    iou = common / (predicted.sum((2, 3)) + target.sum((2, 3)) - common)
    return per_mask[:, 0].mean() + 0.5 * per_mask[:, 1:].amin(1).mean() + F.mse_loss(quality, iou)


def _batch_loss(sam: Sam, names: range, outlines: list[list[np.ndarray]]) -> tuple[Tensor, int]:
    """Return loss over the training examples of these names, and how many boxes they hold."""
    images, masks, boxes = zip(*(training_example(name, outlines) for name in names), strict=True)
    owner = torch.arange(len(names)).repeat_interleave(torch.tensor([len(m) for m in masks]))
    embeddings = sam.image_encoder(sam.preprocess(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)))
    logits, quality = decode(sam, embeddings[owner], torch.from_numpy(np.concatenate(boxes)))
    return loss_of(logits, quality, torch.from_numpy(np.concatenate(masks)).float()), len(owner)


def train(folder: Path, steps: int, batch: int = 24, rate: float = 1e-3) -> tuple[Sam, dict[str, object]]:
    """Train from scratch, or from the checkpoint in `folder`; AdamW with a short warm-up and a cosine to zero.

    Returns:
        The network, and the facts for its card.
    """
    torch.manual_seed(SEED)
    sam, journal = build_sam(CONFIG), Journal(folder / "sam")
    opt = torch.optim.AdamW(sam.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    step, seen, running = 0, 0, 0.0
    if state := journal.load():
        sam.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        step, seen, running = state["step"], state["boxes"], state["running"]
    outlines = [random_outline(i) for i in range(SHAPES)]
    while step < steps:
        loss, boxes = _batch_loss(sam, range(step * batch, (step + 1) * batch), outlines)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        for group in opt.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        opt.step()
        step, seen = step + 1, seen + boxes
        running = loss.item() if running == 0 else 0.97 * running + 0.03 * loss.item()
        if step % 100 == 0 or step == steps:
            journal.log(step=step, loss=round(running, 4), **evaluate(sam, range(60)))
        state = {"net": sam.state_dict(), "opt": opt.state_dict(), "step": step, "boxes": seen, "running": running}
        journal.save(state, force=step == steps)
    facts = {
        "seed": SEED,
        "data": f"scenes of {SHAPES} random shapes, all with IoU < {LIKENESS} to the 16 classes",
        "steps": step,
        "images seen": step * batch,
        "boxes seen": seen,
        "parameters": sum(p.numel() for p in sam.parameters()),
        "minutes": round(journal.seconds / 60, 1),
        "cpu minutes": round(journal.cpu_seconds / 60, 1),
    }
    return sam.eval(), facts


def held_out(names: Iterable[int], jitter: float = 0.0) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return scenes of the 16 real classes: images (N, S, S, 3), and per image its piece masks (R, S, S) and boxes (R, 4)."""
    images, masks, boxes = [], [], []
    for name in names:
        rng = embedded.seeded("sam", "held out", name)
        image, labels = embedded.draw(embedded.sample_scene(rng))
        true = pieces(labels)
        images.append(image)
        masks.append(np.array(true).reshape(-1, *labels.shape))
        boxes.append(np.array([jittered(tight_box(m), rng, jitter) for m in true], np.float32).reshape(-1, 4))
    return np.stack(images), masks, boxes


def iou_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return IoU (R,) of two stacks of masks bool (R, H, W)."""
    return (a & b).sum((1, 2)) / np.maximum((a | b).sum((1, 2)), 1)


def evaluate(sam: Sam, names: Iterable[int], jitter: float = 0.0) -> dict[str, float]:
    """Return mean IoU, share above 0.8 and the IoU head's correlation on held-out pieces of the 16 classes."""
    images, masks, boxes = held_out(names, jitter)
    was_training = sam.training
    predicted, quality = zip(*SamRefiner(sam).masks(images, boxes), strict=True)
    sam.train(was_training)
    iou = iou_of(np.concatenate(predicted), np.concatenate(masks))
    correlation = np.corrcoef(iou, np.concatenate(quality))[0, 1] if iou.std() > 0 else math.nan
    return {
        "iou": round(float(iou.mean()), 4),
        "above_0.8": round(float((iou > 0.8).mean()), 4),
        "iou_head_r": round(float(correlation), 3),
        "pieces": len(iou),
    }


def baselines(names: Iterable[int]) -> dict[str, float]:
    """Return mean IoU of the filled tight box and of the ellipse inscribed in it, on the pieces of `evaluate`."""
    _, masks, boxes = held_out(names)
    true, hints = np.concatenate(masks), np.concatenate(boxes)[:, :, None, None]
    y, x = np.mgrid[: embedded.SIZE, : embedded.SIZE]
    inside = (x >= hints[:, 0]) & (x <= hints[:, 2]) & (y >= hints[:, 1]) & (y <= hints[:, 3])
    across = (2 * x - hints[:, 0] - hints[:, 2]) / (hints[:, 2] - hints[:, 0] + 1)
    down = (2 * y - hints[:, 1] - hints[:, 3]) / (hints[:, 3] - hints[:, 1] + 1)
    ellipse = across**2 + down**2 <= 1
    return {"box": round(float(iou_of(inside, true).mean()), 4), "ellipse": round(float(iou_of(ellipse, true).mean()), 4)}


def export(sam: Sam, folder: Path, facts: dict[str, object]) -> None:
    """Write `config.json`, `model.safetensors` (float16) and the card, with scores on 600 held-out scenes."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in sam.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(tensors))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    scenes, scores = range(1000, 1600), {}
    for off in range(4):
        pieces_ = evaluate(sam, scenes, off)
        scores |= {f"{key}, box sides off by up to {off} px": value for key, value in pieces_.items() if key != "pieces"}
        scores["pieces scored"] = pieces_["pieces"]
    facts = {**facts, **scores, **{f"iou of the {shape} itself": value for shape, value in baselines(scenes).items()}}
    write_card(folder, "embedded-sam: a small segment_anything Sam that never saw a class of the embedded world", facts)
