"""The embedded Stable Diffusion 3 pipeline: tokenizers, CLIP encoders, AutoencoderKL and SD3Transformer2DModel, trained here.

Three steps that each resume: the autoencoder (crops of drawn scenes), the latent pool (scenes and captions, encoded
once), the rectified-flow transformer together with its two text encoders. `export` writes diffusers' own folder format.
"""

from __future__ import annotations

import math
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
TOKENS = 18  # longest sentence of the world and a word more, with its two end marks
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
    """Return one sentence of the generator's training set.

    Its words are those of the grammar, with other shares: every other prompt asks for company, a quarter of that of any class but
    the companion; single and upright things are more frequent than the grammar's; one prompt in twenty is a class name alone.
    """
    pick, name = embedded._pick, embedded._pick(rng, embedded.CLASSES)
    if rng.random() < 0.05:
        return f"a {name}"
    beside = ""
    if rng.random() < 0.5:
        others = [c for c in embedded.CLASSES if c not in (name, embedded.COMPANIONS[name])]
        other = embedded.COMPANIONS[name] if rng.random() < 0.75 else pick(rng, others)
        words = ["a", pick(rng, embedded.PATTERNS), pick(rng, embedded.COLOURS)]
        if rng.random() < 0.1:
            words.insert(1, pick(rng, embedded.SIZES))
        if rng.random() < 0.1:
            words.append("tilted")
        beside = " ".join([*words, other])
    return embedded.prompt_of(
        name,
        colour=pick(rng, embedded.COLOURS),
        size=pick(rng, embedded.SIZES),
        pattern=str(rng.choice(embedded.PATTERNS, p=(0.4, 0.3, 0.3))),
        background=pick(rng, embedded.BACKGROUNDS),
        pose=str(rng.choice(embedded.POSES, p=(0.65, 0.35))),
        count=str(rng.choice(tuple(embedded.COUNTS), p=(0.65, 0.35))),
        beside=beside,
    )


def product_prompts(count: int, seed: int = SEED) -> list[str]:
    """Return `count` prompts as the grammar agent writes them, the classes in turn."""
    from syn4seg.prompts.grammar import GrammarAgent

    agent = GrammarAgent("embedded", seed, -(-count // len(embedded.CLASSES)))
    rows = [agent.propose(name, 0, [], []) for name in embedded.CLASSES]
    return [prompt for turn in zip(*rows, strict=True) for prompt in turn][:count]


def scenes(prompts: list[str], seed: str, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 (N, 64, 64, 3) and class masks uint8 (N, 64, 64) that show exactly what each prompt says."""
    drawn = []
    for i, prompt in enumerate(prompts, start):
        noise_seed = int(embedded.seeded(seed, "noise", i).integers(2**62))
        drawn.append(embedded.draw(embedded.scene_of_prompt(prompt, noise_seed, company=0)))
    images, masks = zip(*drawn, strict=True)
    return np.stack(images), np.stack(masks)


def prompts_of(seed: str, start: int, count: int) -> list[str]:
    """Return training prompts `start` to `start + count` of a named seed."""
    return [training_prompt(embedded.seeded(seed, i)) for i in range(start, start + count)]


def to_tensor(images: np.ndarray) -> Tensor:
    """Return (N, 3, H, W) float in [-1, 1] of uint8 (N, H, W, 3)."""
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
    pool = to_tensor(scenes(prompts_of("vae", 0, 3000), "vae")[0])
    held = to_tensor(scenes(prompts_of("vae-held", 0, 64), "vae-held")[0])
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


def any_autoencoder(folder: Path, steps: int, start: Path | None) -> tuple[Any, str]:
    """Return the autoencoder in `folder`, of the folder `start`, or else a trained one, and a line about it for the card.

    A trained one learns its `scaling_factor` and `shift_factor` from 1024 scenes, so that latents have unit variance.
    """
    from diffusers import AutoencoderKL

    kept = folder / "autoencoder"
    if not kept.exists():
        if start is not None:
            vae: Any = AutoencoderKL.from_pretrained(start / "vae").float()
        else:
            vae = train_autoencoder(folder, steps).eval()
            images = to_tensor(scenes(prompts_of("vae", 0, 1024), "vae")[0])
            with torch.no_grad():
                mean = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
            vae.register_to_config(scaling_factor=1 / mean.std().item(), shift_factor=mean.mean().item())
        vae.save_pretrained(kept)
    vae = AutoencoderKL.from_pretrained(kept).float().eval()
    held = to_tensor(scenes(product_prompts(256), "vae-held")[0])
    with torch.no_grad():
        error = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) - part for part in held.split(64)])
    return vae, f"held-out PSNR {10 * math.log10(4 / error.square().mean().item()):.2f} dB on scenes of the grammar's prompts"


def export(net: nn.Module, texts: Any, vae: Any, folder: Path, facts: dict) -> None:
    """Write the pipeline in diffusers' folder format, float16 safetensors, with its card."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = clip_tokenizer(embedded.vocabulary())
    parts: dict[str, Any] = {
        "transformer": net,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.5),
        "vae": vae,
        "text_encoder": texts[0],
        "tokenizer": tokenizer,
        "text_encoder_2": texts[1],
        "tokenizer_2": tokenizer,
        "text_encoder_3": None,
        "tokenizer_3": None,
    }
    pipeline = StableDiffusion3Pipeline(**parts)
    pipeline.to(dtype=torch.float16)
    vae.register_to_config(_name_or_path="")  # the library would write the folder that it was read from
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_card(folder, "embedded-sd3: a small StableDiffusion3Pipeline of the embedded world", facts)
