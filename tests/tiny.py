"""Real classes at tiny size: a pipeline with random weights that draws 64x64 images in a moment."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lora.base_text import train_tokenizer
from pipeline.pipeline import SyntheticDicomPipeline

WORDS = [
    "chest X-ray, PA view, normal lungs, 54 year old woman",
    "axial T1 brain MRI with contrast, meningioma",
    "blood smear",
    "head CT",
]


@functools.cache
def tiny_tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer of a few hundred tokens."""
    return train_tokenizer(WORDS, Path(tempfile.mkdtemp(prefix="tiny-tokenizer-")), vocab_size=600)


def tiny_pipeline(scheduler: object | None = None, seed: int = 0) -> SyntheticDicomPipeline:
    """A pipeline of real components with random weights; images are 64x64."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=32,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        mid_block_add_attention=False,
    )
    flow = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True
    )
    pipe = SyntheticDicomPipeline(
        vae.eval(),
        text.eval(),
        tokenizer,
        unet.eval(),
        scheduler or flow,
        model_name="tiny",
        default_num_inference_steps=3,
        default_guidance_scale=2.0,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
