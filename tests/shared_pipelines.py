"""Tiny text-to-image pipelines of diffusers in their true formats, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tools.generator import clip_tokenizer

WORDS = ("red", "star", "blue", "moon", "on", "sand", "a", "two", "in", "the")
WIDTH = 32
LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def clip(projection: bool = False) -> Any:
    """A CLIP text model of two layers, and its tokenizer."""
    tokenizer = clip_tokenizer(WORDS)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=WIDTH,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval(), tokenizer


def letters() -> Any:
    """A tokenizer of a token per letter, as language models and T5 here have it."""
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "<pad>", "</s>"]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="right"
    )
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return fast


def t5() -> Any:
    """A T5 encoder of two layers, and a tokenizer."""
    tokenizer = letters()
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(tokenizer), **sizes)).eval(), tokenizer


def autoencoder(channels: int = 4, **changes: Any) -> Any:
    """An autoencoder that halves a side."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=32,
        **changes,
    ).eval()


def unet(**changes: Any) -> Any:
    """A denoiser of Stable Diffusion 1 and XL."""
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "sample_size": 16,
            "norm_num_groups": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 4,
        }
        | changes
    ).eval()


def stable_diffusion() -> Any:
    """Stable Diffusion 1.5."""
    text, tokenizer = clip()
    return diffusers.StableDiffusionPipeline(
        autoencoder(), text, tokenizer, unet(), diffusers.DDIMScheduler(), None, None, requires_safety_checker=False
    )


def latent_consistency() -> Any:
    """A latent consistency model: noise again at every step."""
    text, tokenizer = clip()
    network = unet(time_cond_proj_dim=WIDTH)
    scheduler = diffusers.LCMScheduler()
    return diffusers.LatentConsistencyModelPipeline(
        autoencoder(), text, tokenizer, network, scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_xl() -> Any:
    """Stable Diffusion XL."""
    (text, tokenizer), (text_2, tokenizer_2) = clip(), clip(projection=True)
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        cross_attention_dim=2 * WIDTH,
    )
    scheduler = diffusers.EulerDiscreteScheduler()
    return diffusers.StableDiffusionXLPipeline(autoencoder(), text, text_2, tokenizer, tokenizer_2, network, scheduler)


def flux() -> Any:
    """FLUX.1, whose guidance is an input of the network."""
    (text, tokenizer), (text_2, tokenizer_2) = clip(), t5()
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(scheduler, autoencoder(shift_factor=0.0), text, tokenizer, text_2, tokenizer_2, network)


def pixart() -> Any:
    """PixArt Sigma: T5 with a mask."""
    text, tokenizer = t5()
    network = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    ).eval()
    return diffusers.PixArtSigmaPipeline(tokenizer, text, autoencoder(), network, diffusers.DDIMScheduler())


def sana() -> Any:
    """Sana: a language model with instructions, and an autoencoder with a deep code."""
    tokenizer = letters()
    config = transformers.Gemma2Config(vocab_size=len(tokenizer), **LANGUAGE_MODEL)
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()
    network = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
        patch_size=1,
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return diffusers.SanaPipeline(tokenizer, transformers.Gemma2Model(config).eval(), vae, network, scheduler)


def z_image() -> Any:
    """Z-Image: prompts of any length, as a list."""
    tokenizer = letters()
    config = transformers.Qwen3Config(vocab_size=len(tokenizer), **LANGUAGE_MODEL)
    network = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[512, 64, 64],
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.ZImagePipeline(
        scheduler, autoencoder(shift_factor=0.0), transformers.Qwen3Model(config).eval(), tokenizer, network
    )


def qwen_image() -> Any:
    """Qwen-Image: a vision language model reads the prompt, and the autoencoder is that of a video."""
    tokenizer = letters()
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 1e6},
        "vocab_size": len(tokenizer),
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, vocab_size=len(tokenizer))
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    network = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    return diffusers.QwenImagePipeline(scheduler, vae, model, tokenizer, network)


FAMILIES = {
    make.__name__: make
    for make in (stable_diffusion, latent_consistency, stable_diffusion_xl, flux, pixart, sana, z_image, qwen_image)
}


def saved(name: str, folder: Path) -> Path:
    """Write a pipeline as diffusers does; layers that start at zero are made random, since else no word matters."""
    torch.manual_seed(0)
    pipeline = FAMILIES[name]()
    for part in pipeline.components.values():
        for values in part.parameters() if isinstance(part, torch.nn.Module) else ():
            if not values.any():
                torch.nn.init.normal_(values, std=0.1)
    pipeline.save_pretrained(folder / name)
    return folder / name
