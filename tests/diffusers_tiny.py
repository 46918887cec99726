"""Tiny diffusers pipelines of real classes, built from configs with random weights: no file, no network."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 1000


def unet() -> Any:
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).eval()  # fmt: skip


def ddpm(**config: Any) -> Any:
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return quiet(DDPMPipeline(unet(), DDPMScheduler(**{"clip_sample": False, **config})))


def dit() -> Any:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return quiet(DiTPipeline(net.eval(), vae(), DDIMScheduler(clip_sample=False)))


def vae(**config: Any) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(1)
    known = {
        "block_out_channels": (8, 8), "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    return AutoencoderKL(**{**known, **config}).eval()


def clip(*, projection: bool = False, width: int = 16) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(2)
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=VOCABULARY,
        projection_dim=16, bos_token_id=0, eos_token_id=2, pad_token_id=1, max_position_embeddings=77,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def tokens(name: str = "CLIPTokenizer") -> Any:
    """A tokenizer of letters, made without a file."""
    import transformers

    letters = {c: i for i, c in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    letters |= {f"{c}</w>": i + len(letters) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    if name == "CLIPTokenizer":
        special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        return transformers.CLIPTokenizer(vocab=letters, merges=[], model_max_length=77, **special)
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.T5Tokenizer(vocab=[(c, 0.0) for c in letters], model_max_length=16, **special)


def t5(width: int = 16) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(3)
    config = T5Config(d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=VOCABULARY)
    return T5EncoderModel(config).eval()


def unet_text(**config: Any) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    known = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**known, **config}).eval()


def sd(kind: str = "StableDiffusionPipeline", **more: Any) -> Any:
    """Stable Diffusion 1; its scheduler has the config of the published one."""
    import diffusers
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler

    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    if kind.startswith("StableDiffusionControlNet"):
        from diffusers.models.controlnets.controlnet import ControlNetModel

        more["controlnet"] = ControlNetModel(
            block_out_channels=(8, 16), layers_per_block=1, in_channels=4, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=16,
            conditioning_embedding_out_channels=(8, 16),
        ).eval()  # fmt: skip
    return quiet(
        getattr(diffusers, kind)(
            unet=unet_text(), vae=vae(), text_encoder=clip(), tokenizer=tokens(), scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False, **more,
        )
    )  # fmt: skip


def sdxl(kind: str = "StableDiffusionXLPipeline") -> Any:
    import diffusers
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    net = unet_text(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
        cross_attention_dim=32,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return quiet(
        getattr(diffusers, kind)(
            unet=net, vae=vae(), text_encoder=clip(), text_encoder_2=clip(projection=True), tokenizer=tokens(),
            tokenizer_2=tokens(), scheduler=scheduler, add_watermarker=False,
        )
    )  # fmt: skip


def sd3(kind: str = "StableDiffusion3Pipeline") -> Any:
    import diffusers
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    net = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
    ).eval()  # fmt: skip
    return quiet(
        getattr(diffusers, kind)(
            transformer=net, vae=vae(shift_factor=0.06, scaling_factor=1.5), text_encoder=clip(projection=True),
            text_encoder_2=clip(projection=True), text_encoder_3=t5(32), tokenizer=tokens(), tokenizer_2=tokens(),
            tokenizer_3=tokens("T5Tokenizer"), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )  # fmt: skip


def flux() -> Any:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    return quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(shift_factor=0.0),
            text_encoder=clip(), tokenizer=tokens(), text_encoder_2=t5(), tokenizer_2=tokens("T5Tokenizer"),
            transformer=net,
        )
    )  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
