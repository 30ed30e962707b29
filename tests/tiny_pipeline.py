"""A text-to-image pipeline small enough for tests, as diffusers builds and saves it."""

from pathlib import Path
from typing import Any

import pytest
import torch

CHANNELS = (4, 8, 8)
"""Of the autoencoder: three levels, so that four pixels of a side are one place of its code."""
WIDTH = 16
PLACES = 20
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
"""The schedule of Stable Diffusion 1.5."""


def pipeline(**more: Any) -> Any:
    """A pipeline with random weights, always the same."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"])}
    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(**{**sizes, **blocks, "cross_attention_dim": WIDTH, **more})
        levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
        vae = diffusers.AutoencoderKL(**levels, block_out_channels=CHANNELS, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25)
        ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
        text = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.CLIPTextConfig(vocab_size=len(vocabulary), max_position_embeddings=PLACES, **text, **ends)
        reader = transformers.CLIPTextModel(config)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=PLACES)
    scheduler = diffusers.PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True)
    whole = {"unet": unet, "vae": vae, "text_encoder": reader, "tokenizer": tokenizer, "scheduler": scheduler}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = diffusers.StableDiffusionPipeline(**whole, **none)
    made.set_progress_bar_config(disable=True)
    return made


def saved(folder: Path, **more: Any) -> Path:
    """The folder of such a pipeline."""
    pipeline(**more).save_pretrained(folder)
    return folder
