"""Rectified flow of the embedded Stable Diffusion 3: latents of drawn scenes, the transformer and its text encoders.

Three things make an hour of one core go further. The loss of latent cells on and around objects counts three times, since
silhouettes are what is hard to learn. A linear layer behind the third block reads the class mask off the image tokens, and
its loss teaches shapes without the noise of the flow's own target. Products are bfloat16 (weights, averages and losses stay
float32), attention is the plain one, which is the faster one in bfloat16, and the network is compiled.

The rate is constant after a warm-up, so a training has no end: the exponential average of its weights can be exported at any
time, and `decay` adds a leg, from a copy of the checkpoint, in which the rate falls to zero.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from syn4seg.data import embedded
from tools.checkpoint import Journal
from tools.generator import LATENT, SEED, TOKENS, clip_tokenizer, prompts_of, scenes, text_encoder, to_tensor, transformer

SHARD = 2048  # scenes in one file of the pool
HELD = 256  # scenes of the first shard that are not trained on
OUTLINE = 32  # side of the class map that is read off the image tokens
NEAR = 3.0  # weight of a latent cell on or beside an object
OUTLINE_WEIGHT = 0.1  # of the loss of the class map
LOG = 100  # steps between two lines of the log


class Pool:
    """Latents float16 (N, 8, 16, 16), scaled; class maps uint8 (N, 32, 32); token ids (N, TOKENS). Shards are drawn when needed."""

    def __init__(self, folder: Path, vae: Any, tokenizer: Any, shards: int):
        self.folder, self.vae, self.tokenizer, self.shards = folder, vae.eval(), tokenizer, shards
        self.latents: list[np.ndarray] = []
        self.maps: list[np.ndarray] = []
        self.ids: list[Tensor] = []
        folder.mkdir(parents=True, exist_ok=True)

    def grow(self, shards: int) -> None:
        """Draw or read shards until there are `shards`, at most as many as the pool may have."""
        while len(self.latents) < min(shards, self.shards):
            start = len(self.latents) * SHARD
            path = self.folder / f"{start:08d}.npz"
            if not path.exists():
                self._draw(path, start)
            with np.load(path) as stored:
                self.latents.append(stored["latent"])
                self.maps.append(stored["map"])
                self.ids.append(tokens(self.tokenizer, stored["prompt"].tolist()))

    def _draw(self, path: Path, start: int) -> None:
        prompts = prompts_of("pool", start, SHARD)
        images, masks = scenes(prompts, "pool", start)
        with torch.no_grad():
            mean = torch.cat([self.vae.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(images, SHARD // 64)])
        latent = (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        partial, step = path.with_suffix(".partial.npz"), embedded.SIZE // OUTLINE
        np.savez(partial, latent=latent.numpy().astype(np.float16), map=masks[:, ::step, ::step], prompt=np.array(prompts))
        partial.rename(path)

    def batch(self, which: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents float32 (B, 8, 16, 16), class maps int64 (B, 32, 32) and token ids (B, TOKENS) of scenes `which`."""
        at = [(w // SHARD, w % SHARD) for w in which]
        latents = torch.from_numpy(np.stack([self.latents[s][i] for s, i in at])).float()
        maps = torch.from_numpy(np.stack([self.maps[s][i] for s, i in at])).long()
        return latents, maps, torch.stack([self.ids[s][i] for s, i in at])


def tokens(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Return token ids (N, TOKENS), padded as the pipeline pads them."""
    return tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


class Denoiser(nn.Module):
    """Transformer and text encoders as one module, conditioned exactly as StableDiffusion3Pipeline does it.

    `outline` is for training only: it reads the class map off the image tokens behind the third block.
    """

    def __init__(self, tokenizer: Any):
        super().__init__()
        self.net: Any = transformer()
        self.texts = nn.ModuleList([text_encoder(tokenizer, SEED + k) for k in (1, 2)])
        self.patch = OUTLINE // (LATENT // 2)
        self.outline = nn.Linear(self.net.inner_dim, self.patch**2 * (1 + len(embedded.CLASSES)))
        self._behind: Tensor | None = None
        self.net.transformer_blocks[2].register_forward_hook(self._note)

    def _note(self, block: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        self._behind = outputs[1]

    def forward(self, noisy: Tensor, ids: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return velocity (N, 8, 16, 16) and logits (N, 17, 32, 32) of the class map."""
        outs = [text(ids, output_hidden_states=True) for text in self.texts]
        sequence, pooled = torch.cat([o.hidden_states[-2] for o in outs], -1), torch.cat([o.text_embeds for o in outs], -1)
        velocity = self.net(
            noisy, encoder_hidden_states=sequence, pooled_projections=pooled, timestep=at * 1000, return_dict=False
        )[0]
        assert self._behind is not None
        side, patch = LATENT // 2, self.patch
        cells = self.outline(self._behind).view(len(noisy), side, side, patch, patch, -1)
        return velocity, cells.permute(0, 5, 1, 3, 2, 4).reshape(len(noisy), -1, OUTLINE, OUTLINE)


def load_folder(net: Denoiser, tokenizer: Any, folder: Path) -> None:
    """Set transformer and text encoders to the weights of an exported folder, whose words and length may be others.

    A word that the folder knows keeps its embedding; positions behind its last one start as that one, slightly disturbed.
    """
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    net.net.load_state_dict(SD3Transformer2DModel.from_pretrained(folder / "transformer").float().state_dict())
    known = CLIPTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    both = [(row, known[word]) for word, row in tokenizer.get_vocab().items() if word in known]
    to, source = (torch.tensor(rows) for rows in zip(*both, strict=True))
    for k, text in enumerate(net.texts):
        stored = CLIPTextModelWithProjection.from_pretrained(folder / ("text_encoder" if k == 0 else "text_encoder_2")).float()
        old, new = stored.state_dict(), text.state_dict()
        for name, value in old.items():
            if name.endswith("token_embedding.weight"):
                new[name][to] = value[source]
            elif name.endswith("position_embedding.weight"):
                length = min(len(value), TOKENS)
                new[name][length:] += value[-1]
                new[name][:length] = value[:length]
            elif new[name].is_floating_point():
                new[name].copy_(value)


def losses(net: Any, clean: Tensor, maps: Tensor, ids: Tensor, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the flow's loss (cells on and beside objects count `NEAR` times) and the loss of the class map."""
    at, noise = torch.sigmoid(0.7 + torch.randn(len(clean), generator=gen)), torch.randn(clean.shape, generator=gen)
    mix = at.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        velocity, cells = net((1 - mix) * clean + mix * noise, ids, at)
    near = F.max_pool2d((maps > 0).float()[:, None], 6, 2, 2)  # (N, 1, 16, 16): the cell or a pixel beside it shows an object
    weight = 1 + (NEAR - 1) * near
    flow = ((velocity.float() - (noise - clean)).square().mean(1, keepdim=True) * weight).sum() / weight.sum()
    return flow, F.cross_entropy(cells.float(), maps)


def train(
    folder: Path,
    vae: Any,
    images: int,
    *,
    start: Path | None = None,
    decay: int = 0,
    shards: int = 24,
    batch: int = 48,
    rate: float = 1.5e-3,
    stop_after: float = math.inf,
) -> tuple[Denoiser, dict[str, object]]:
    """Train until `images` were seen, resuming from the checkpoint in `folder`, and return the averaged network.

    Args:
        images: images to be seen in all; 0 returns the average of the checkpoint.
        start: an exported folder to start from, if there is no checkpoint yet; otherwise training starts from nothing.
        decay: if above 0, train this many images more from a copy of the checkpoint, the rate falling to zero.
        shards: files of `SHARD` scenes in the pool; a new one is drawn every 64 steps.
        stop_after: seconds after which a checkpoint is written and training returns early.

    Returns:
        The network with its averaged weights, and the facts for its card.
    """
    began, tokenizer = time.time(), clip_tokenizer(embedded.vocabulary())
    net, journal, state, before = _resumed(folder, tokenizer, start, decay)
    pool, empty = Pool(folder / "latents", vae, tokenizer, shards), tokens(tokenizer, [""])[0]
    average, step = {k: v.detach().clone() for k, v in net.state_dict().items()}, 0
    opt = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    if state:
        average, step = state["average"], state["step"]
        opt.load_state_dict(state["opt"])
    first = int(state["decay_from"]) if state and "decay_from" in state else step
    steps, running = first + decay // batch if decay else images // batch, None
    if step < steps:
        pool.grow(1)
        held, forward = pool.batch(np.arange(HELD)), torch.compile(net)
    while step < steps:
        pool.grow(2 + step // 64)
        gen = torch.Generator().manual_seed(SEED * 10_000_000 + step)
        which = torch.randint(HELD, len(pool.latents) * SHARD, (batch,), generator=gen).numpy()
        clean, maps, ids = pool.batch(which)
        ids = torch.where(torch.rand(batch, 1, generator=gen) < 0.1, empty, ids)
        flow, outline = losses(forward, clean, maps, ids, gen)
        opt.zero_grad()
        for group in opt.param_groups:
            group["lr"] = rate * ((steps - step) / (steps - first) if decay else min(1.0, (step + 1) / 200))
        (flow + OUTLINE_WEIGHT * outline).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - keep)
        running = flow.item() if running is None else 0.99 * running + 0.01 * flow.item()
        over = time.time() - began > stop_after
        if step % LOG == 0 or step == steps or over:
            flow, outline = _held(net, average, held)
            journal.log(step=step, images=step * batch, loss=round(running, 4), held=flow, outline=outline, pool=len(pool.latents))
        full = {"net": net.state_dict(), "opt": opt.state_dict(), "average": average, "step": step}
        journal.save(full | ({"decay_from": first} if decay else {}), force=step == steps or over)
        if over:
            break
    net.load_state_dict(average)
    spent = {"images seen": step * batch, "cpu hours": journal.cpu_seconds / 3600}
    facts: dict[str, object] = {
        "data": f"{SHARD * shards} drawn scenes of the embedded world",
        **{key: round(value + before.get(key, 0), 2) for key, value in spent.items()},
        "of these before the last start": {key: round(before[key], 2) for key in spent if key in before} or "none",
        "batch": batch,
        "seed": SEED,
        "rate": f"{rate}, constant after 200 steps" + (f", then to zero over the last {decay} images" if decay else "; average"),
    }
    return net.eval(), facts


def _resumed(folder: Path, tokenizer: Any, start: Path | None, decay: int) -> tuple[Denoiser, Journal, dict | None, dict]:
    """Return network, journal, checkpoint (None on a fresh start) and what the card of the start folder says was spent."""
    net, main = Denoiser(tokenizer), Journal(folder / "diffusion", every=180)
    state, note = main.load(), folder / "start.json"
    if decay:
        leg = Journal(folder / "decayed", every=180)
        further = leg.load()
        if further is None:
            leg.seconds, leg.cpu_seconds = main.seconds, main.cpu_seconds
        main, state = leg, further or state
    if state:
        net.load_state_dict(state["net"])
    elif start is not None:
        load_folder(net, tokenizer, start)
        note.write_text((start / "card.json").read_text())
    return net, main, state, json.loads(note.read_text()) if note.exists() else {}


def _held(net: Denoiser, average: dict, held: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Return both losses of the averaged weights on the held-out scenes at fixed noise and times."""
    now = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(average)
    with torch.no_grad():
        flow, outline = losses(net, *held, torch.Generator().manual_seed(SEED))
    net.load_state_dict(now)
    return round(flow.item(), 4), round(outline.item(), 4)
