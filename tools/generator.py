"""The embedded Stable Diffusion 3 pipeline: tokenizers, CLIP encoders, AutoencoderKL and SD3Transformer2DModel, trained here.

Three steps that each resume: the autoencoder (crops of drawn scenes), the latent pool (scenes and captions, encoded
once), the rectified-flow transformer together with its two text encoders. `export` writes diffusers' own folder format.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.data import embedded
from tools.checkpoint import Journal, write_card

LATENT = 16  # side of the latent grid of a 64-pixel image
CHANNELS = 8
TOKENS = 12  # longest sentence of the world, with its two end marks
WIDTH = 64  # hidden size of each text encoder
SEED = 20


def clip_tokenizer(words: list[str]):
    """Return a CLIP tokenizer in which each of `words` is one token and every other word falls to letters.

    The trainer numbers last letters in the order of a hash table, another one in each process; numbered beforehand, as special
    tokens, they and all ties behind them are the same everywhere. (Resuming a training with other numbers unlearns a word.)
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    begin, end = "<|startoftext|>", "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), split])
    numbered = [begin, end, *(letter + "</w>" for letter in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=1,
        special_tokens=numbered,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(words, trainer)
    import json

    learned = json.loads(bpe.to_str())["model"]
    vocab = dict(learned["vocab"])
    merges: Any = [tuple(m) for m in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def text_encoder(tokenizer, seed: int):
    """Return a two-layer CLIPTextModelWithProjection that fits `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def autoencoder() -> Any:
    """Return AutoencoderKL, 4x down, 8 latent channels, no attention."""
    from diffusers import AutoencoderKL

    torch.manual_seed(SEED)
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (24, 48, 64),
    }
    return AutoencoderKL(
        **blocks,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        sample_size=embedded.SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def transformer():
    """Return SD3Transformer2DModel of 4.5 M parameters on 64 image tokens."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(SEED)
    net = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=5,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=160,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=LATENT,
        qk_norm="rms_norm",
    )
    for name, p in net.named_parameters():  # every block starts as the identity
        if ("norm1" in name and "linear" in name) or "norm_out.linear" in name or name.startswith("proj_out"):
            nn.init.zeros_(p)
    return net


def training_prompt(rng: np.random.Generator) -> str:
    """Return one sentence of the generator's training set: plain, single and upright things most often."""
    pick = embedded._pick
    return embedded.prompt_of(
        pick(rng, embedded.CLASSES),
        colour=pick(rng, embedded.COLOURS),
        size=pick(rng, embedded.SIZES),
        pattern=str(rng.choice(embedded.PATTERNS, p=(0.56, 0.22, 0.22))),
        background=pick(rng, embedded.BACKGROUNDS),
        pose=str(rng.choice(embedded.POSES, p=(0.8, 0.2))),
        count=str(rng.choice(("a", "two"), p=(0.93, 0.07))),
    )


def _scenes(seed: str, start: int, count: int) -> tuple[np.ndarray, list[str]]:
    images, prompts = [], []
    for i in range(start, start + count):
        prompt = training_prompt(embedded.seeded(seed, i))
        noise_seed = int(embedded.seeded(seed, "noise", i).integers(2**62))
        images.append(embedded.draw(embedded.scene_of_prompt(prompt, noise_seed, company=0))[0])
        prompts.append(prompt)
    return np.stack(images), prompts


def _to_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(folder: Path, steps: int, batch: int = 32, crop: int = 32) -> Any:
    """Return l1 + L2 + gradient loss with a light KL term, on random crops; logs held-out PSNR in dB."""
    journal, vae = Journal(folder / "vae"), autoencoder()
    state = journal.load()
    opt = torch.optim.AdamW(vae.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 2.5e-3, total_steps=steps + 1, pct_start=0.05)
    done = 0
    if state:
        vae.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        schedule.load_state_dict(state["schedule"])
        done = state["step"]
    if done >= steps:
        return vae
    pool = _to_tensor(_scenes("vae", 0, 3000)[0])
    held = _to_tensor(_scenes("vae-held", 0, 64)[0])
    for step in range(done, steps):
        gen = torch.Generator().manual_seed(SEED * 10_000_000 + step)
        which = torch.randint(len(pool), (batch,), generator=gen)
        y, x = (torch.randint(0, embedded.SIZE - crop + 1, (batch,), generator=gen) // 4 * 4 for _ in range(2))
        real = torch.stack([pool[w, :, a : a + crop, b : b + crop] for w, a, b in zip(which, y, x, strict=True)])
        posterior = vae.encode(real).latent_dist
        latent = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=gen)
        decoded = vae.decode(latent).sample
        error = decoded - real
        edges = (error.diff(dim=2)).abs().mean() + (error.diff(dim=3)).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 3e-3 * kl
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            vae.eval()
            with torch.no_grad():
                mean = vae.encode(held).latent_dist.mean
                psnr = 10 * math.log10(4 / F.mse_loss(vae.decode(mean).sample.clamp(-1, 1), held).item())
            vae.train()
            journal.log(
                step=step + 1,
                loss=round(loss.item(), 4),
                kl=round(kl.item(), 3),
                psnr=round(psnr, 2),
                latent_std=round(mean.std().item(), 3),
            )
        full = {"net": vae.state_dict(), "opt": opt.state_dict(), "schedule": schedule.state_dict(), "step": step + 1}
        journal.save(full, force=step + 1 == steps)
    return vae


def latent_pool(folder: Path, vae: Any, count: int, shard: int = 4096) -> tuple[np.ndarray, list[str]]:
    """Return latents float16 (count, 8, 16, 16), scaled to unit variance, and their prompts; one file per shard, kept.

    The first shard fixes `scaling_factor` and `shift_factor` of the autoencoder.
    """
    out, latents, prompts = folder / "latents", [], []
    out.mkdir(parents=True, exist_ok=True)
    vae.eval()
    for start in range(0, count, shard):
        path = out / f"{start:08d}.npz"
        if not path.exists():
            images, words = _scenes("pool", start, shard)
            with torch.no_grad():
                mean = torch.cat([vae.encode(_to_tensor(part)).latent_dist.mean for part in np.array_split(images, 64)])
            np.savez(path.with_suffix(".partial.npz"), latent=mean.numpy().astype(np.float16), prompt=np.array(words))
            path.with_suffix(".partial.npz").rename(path)
        with np.load(path) as stored:
            latents.append(stored["latent"])
            prompts.extend(stored["prompt"].tolist())
    shift, scale = float(latents[0].astype(np.float32).mean()), 1 / float(latents[0].astype(np.float32).std())
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)
    pool = np.concatenate(latents)
    for part in np.array_split(pool, 16):
        part[:] = (part.astype(np.float32) - shift) * scale
    return pool[:count], prompts[:count]


class Denoiser(nn.Module):
    """Transformer and text encoders as one module, conditioned exactly as StableDiffusion3Pipeline does it."""

    def __init__(self, tokenizer):
        super().__init__()
        self.net = transformer()
        self.texts = nn.ModuleList([text_encoder(tokenizer, SEED + k) for k in (1, 2)])

    def condition(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return sequence (N, TOKENS, 128) and pooled (N, 128) embeddings of token ids (N, TOKENS)."""
        outs = [text(tokens, output_hidden_states=True) for text in self.texts]
        return torch.cat([o.hidden_states[-2] for o in outs], -1), torch.cat([o.text_embeds for o in outs], -1)

    def forward(self, noisy: Tensor, tokens: Tensor, time: Tensor) -> Tensor:
        sequence, pooled = self.condition(tokens)
        return self.net(noisy, encoder_hidden_states=sequence, pooled_projections=pooled, timestep=time * 1000, return_dict=False)[
            0
        ]


def _tokens(tokenizer, prompts: list[str]) -> Tensor:
    return tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def train_diffusion(
    folder: Path,
    vae: Any,
    images: int,
    pool_size: int,
    batch: int = 48,
    rate: float = 1.5e-3,
    threads: int = 0,
    compiled: bool = False,
    stop_after: float = math.inf,
) -> tuple[Denoiser, dict]:
    """Return rectified flow with time drawn as sigmoid(0.7 + normal), 10 % empty prompts, and an exponential average.

    Args:
        images: images to be seen in all; the rate falls linearly to zero over the last 40 % of them.
        stop_after: seconds after which a checkpoint is written and training returns early.

    Returns:
        The averaged network and the facts for its card.
    """
    if threads:
        torch.set_num_threads(threads)
    started = time.time()
    tokenizer = clip_tokenizer(embedded.vocabulary())
    pool, prompts = latent_pool(folder, vae, pool_size)
    ids, empty = _tokens(tokenizer, prompts), _tokens(tokenizer, [""])[0]
    held_latents = torch.from_numpy(pool[:256].astype(np.float32))
    net = Denoiser(tokenizer)
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    opt = torch.optim.AdamW(net.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    journal, step, steps = Journal(folder / "diffusion", every=180), 0, images // batch
    state = journal.load()
    if state:
        net.load_state_dict(state["net"])
        opt.load_state_dict(state["opt"])
        average, step = state["average"], state["step"]
    forward = torch.compile(net) if compiled else net
    running = None
    while step < steps:
        gen = torch.Generator().manual_seed(SEED * 10_000_000 + step)
        which = torch.randint(256, len(pool), (batch,), generator=gen)
        clean = torch.from_numpy(pool[which.numpy()].astype(np.float32))
        words = torch.where(torch.rand(batch, 1, generator=gen) < 0.1, empty, ids[which])
        t = torch.sigmoid(0.7 + torch.randn(batch, generator=gen))
        noise = torch.randn(clean.shape, generator=gen)
        at = t.view(-1, 1, 1, 1)
        loss = F.mse_loss(forward((1 - at) * clean + at * noise, words, t), noise - clean)
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        left = min(1.0, (steps - step) / (0.4 * steps))
        for group in opt.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 200) * max(left, 0.01)
        opt.step()
        step += 1
        keep = min(0.9985, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in net.state_dict().items():
                if value.is_floating_point():
                    average[name].lerp_(value, 1 - keep)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if step % 250 == 0 or step == steps:
            journal.log(
                step=step,
                images=step * batch,
                loss=round(running, 4),
                held=round(_held_loss(net, average, held_latents, ids[:256]), 4),
                lr=opt.param_groups[0]["lr"],
            )
        out_of_time = time.time() - started > stop_after
        journal.save(
            {"net": net.state_dict(), "opt": opt.state_dict(), "average": average, "step": step}, force=step == steps or out_of_time
        )
        if out_of_time:
            break
    net.load_state_dict(average)
    facts = {
        "seed": SEED,
        "data": f"{pool_size} drawn scenes of the embedded world",
        "images seen": step * batch,
        "steps": step,
        "batch": batch,
        "hours": round(journal.seconds / 3600, 2),
        "cpu hours": round(journal.cpu_seconds / 3600, 2),
    }
    return net.eval(), facts


def _held_loss(net: Denoiser, average: dict, latents: Tensor, ids: Tensor) -> float:
    """Return loss of the averaged weights on 256 held-out scenes at fixed noise and times."""
    now = {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(average)
    gen = torch.Generator().manual_seed(SEED)
    noise, t = torch.randn(latents.shape, generator=gen), torch.sigmoid(0.7 + torch.randn(len(latents), generator=gen))
    at = t.view(-1, 1, 1, 1)
    with torch.no_grad():
        loss = F.mse_loss(net((1 - at) * latents + at * noise, ids, t), noise - latents).item()
    net.load_state_dict(now)
    return loss


def export(net: Denoiser, vae: Any, folder: Path, facts: dict) -> None:
    """Write the pipeline in diffusers' folder format, float16 safetensors, with its card."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = clip_tokenizer(embedded.vocabulary())
    parts: dict[str, Any] = {
        "transformer": net.net,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.5),
        "vae": vae,
        "text_encoder": net.texts[0],
        "tokenizer": tokenizer,
        "text_encoder_2": net.texts[1],
        "tokenizer_2": tokenizer,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    pipeline = StableDiffusion3Pipeline(**parts)
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_card(folder, "embedded-sd3: a small StableDiffusion3Pipeline of the embedded world", facts)
