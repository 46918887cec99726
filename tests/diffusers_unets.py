"""Tiny diffusers pipelines around UNets and priors, for the sweep: real classes, random weights, latents as images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffusers_tiny import clip, quiet, sd, sdxl, t5, tokens, unet, unet_text, vae

PARTS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FEW = {"height": 16, "width": 16, "output_type": "latent"}


def embeds(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(*shape: int) -> Tensor:
    return torch.rand(*(shape or (1, 3, 16, 16)), generator=torch.Generator().manual_seed(1))


def made(path: str, **config: Any) -> Any:
    """A network of diffusers with random weights, none of them zero: what is zero at the start says nothing."""
    import diffusers

    torch.manual_seed(0)
    net = getattr(diffusers, path)(**config).eval()
    for parameter in net.parameters():
        if parameter.requires_grad and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)
    return net


def pipeline(name: str, **parts: Any) -> Any:
    import diffusers

    return quiet(getattr(diffusers, name)(**parts))


def scheduler(name: str, **config: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**config)


def ddim() -> Any:
    return pipeline("DDIMPipeline", unet=unet(), scheduler=scheduler("DDIMScheduler"))


def with_text(name: str, unet: Any, sched: Any, **more: Any) -> Any:
    return pipeline(
        name, unet=unet, vae=vae(), text_encoder=clip(), tokenizer=tokens(), scheduler=sched, **{**PARTS, **more}
    )


def instruct() -> Any:
    return with_text(
        "StableDiffusionInstructPix2PixPipeline",
        unet_text(in_channels=8),
        scheduler("EulerAncestralDiscreteScheduler", **SD),
    )


def depth() -> Any:
    return pipeline(
        "StableDiffusionDepth2ImgPipeline", unet=unet_text(in_channels=5), vae=vae(), text_encoder=clip(),
        tokenizer=tokens(), scheduler=scheduler("PNDMScheduler", **SD, skip_prk_steps=True), depth_estimator=None,
        feature_extractor=None,
    )  # fmt: skip


def upscale() -> Any:
    net = unet_text(in_channels=7, num_class_embeds=1000)
    return pipeline(
        "StableDiffusionUpscalePipeline", unet=net, vae=vae(), text_encoder=clip(), tokenizer=tokens(),
        low_res_scheduler=scheduler("DDPMScheduler"), max_noise_level=350,
        scheduler=scheduler("DDIMScheduler", **SD, prediction_type="v_prediction", set_alpha_to_one=False),
    )  # fmt: skip


def lcm() -> Any:
    return with_text("LatentConsistencyModelPipeline", unet_text(time_cond_proj_dim=8), scheduler("LCMScheduler", **SD))


def deepfloyd() -> Any:
    net = unet_text(in_channels=3, out_channels=6, encoder_hid_dim=16, cross_attention_dim=16)
    return pipeline(
        "IFPipeline", unet=net, text_encoder=t5(), tokenizer=tokens("T5Tokenizer"), watermarker=None, **PARTS,
        scheduler=scheduler(
            "DDPMScheduler", beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True,
            sample_max_value=1.5, dynamic_thresholding_ratio=0.95,
        ),
    )  # fmt: skip


def kandinsky(name: str = "KandinskyV22Pipeline") -> Any:
    net = unet_text(
        out_channels=8, encoder_hid_dim=16, encoder_hid_dim_type="image_proj", addition_embed_type="image",
        cross_attention_dim=16,
    )  # fmt: skip
    movq = made(
        "VQModel", block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4, num_vq_embeddings=12,
        vq_embed_dim=4, norm_type="spatial", norm_num_groups=8, in_channels=3, out_channels=3,
    )  # fmt: skip
    sched = scheduler("DDPMScheduler", variance_type="learned_range", clip_sample=False, beta_end=0.012)
    return pipeline(name, unet=net, scheduler=sched, movq=movq)


def kandinsky_prior() -> Any:
    prior = made(
        "PriorTransformer", num_attention_heads=2, attention_head_dim=8, embedding_dim=16, num_layers=1,
        num_embeddings=77, additional_embeddings=4,
    )  # fmt: skip
    import torch.nn as nn

    prior.clip_std = nn.Parameter(torch.ones(1, 16))
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
                         image_size=16, patch_size=8, projection_dim=16)
    )  # fmt: skip
    return pipeline(
        "KandinskyV22PriorPipeline", prior=prior, image_encoder=vision.eval(), text_encoder=clip(projection=True),
        tokenizer=tokens(), scheduler=scheduler("UnCLIPScheduler", variance_type="fixed_small_log",
        prediction_type="sample", clip_sample_range=10.0), image_processor=None,
    )  # fmt: skip


def cascade() -> Any:
    prior = made(
        "StableCascadeUNet", conditioning_dim=16, block_out_channels=(16, 16), num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1), block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ), clip_text_in_channels=16, clip_text_pooled_in_channels=16, clip_image_in_channels=16, clip_seq=1,
        in_channels=4, out_channels=4, switch_level=(False,), timestep_ratio_embedding_dim=8,
    )  # fmt: skip
    return pipeline(
        "StableCascadePriorPipeline", prior=prior, text_encoder=clip(projection=True), tokenizer=tokens(),
        scheduler=scheduler("DDPMWuerstchenScheduler"), feature_extractor=None, image_encoder=None,
    )  # fmt: skip


def animate() -> Any:
    motion = made(
        "MotionAdapter", block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )  # fmt: skip
    return pipeline(
        "AnimateDiffPipeline", unet=unet_text(), vae=vae(), text_encoder=clip(), tokenizer=tokens(),
        motion_adapter=motion,
        scheduler=scheduler("DDIMScheduler", **SD | {"beta_schedule": "linear"}, clip_sample=False),
    )  # fmt: skip


def svd() -> Any:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    net = made(
        "UNetSpatioTemporalConditionModel", block_out_channels=(32, 64), layers_per_block=1, sample_size=8,
        in_channels=8, out_channels=4, down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=16,
        num_attention_heads=4, projection_class_embeddings_input_dim=24, addition_time_embed_dim=8,
    )  # fmt: skip
    video = made(
        "AutoencoderKLTemporalDecoder", block_out_channels=(32, 32), in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    vision = CLIPVisionModelWithProjection(
        CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
                         image_size=16, patch_size=8, projection_dim=16)
    )  # fmt: skip
    return pipeline(
        "StableVideoDiffusionPipeline", unet=net, vae=video, image_encoder=vision.eval(),
        feature_extractor=CLIPImageProcessorPil(crop_size=16, size=16),
        scheduler=scheduler(
            "EulerDiscreteScheduler", **SD, prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0,
            timestep_type="continuous", use_karras_sigmas=True,
        ),
    )  # fmt: skip


def with_scheduler(pipe: Any, name: str, **config: Any) -> Any:
    pipe.scheduler = scheduler(name, **config)
    return pipe


TEXT = {"prompt_embeds": embeds(1, 8, 16), "negative_prompt_embeds": embeds(1, 8, 16, seed=6)}
IMAGES = {"image_embeds": embeds(1, 16), "negative_image_embeds": embeds(1, 16, seed=6)}
LATENT = {"prompt": "a", "image": picture(), "output_type": "latent"}

# name -> (pipeline, arguments, share of num_inference_steps that is run)
UNETS: dict[str, tuple[Any, dict[str, Any], float]] = {
    "ddim": (ddim, {"batch_size": 2, "output_type": "np"}, 1),
    "instruct-pix2pix": (instruct, LATENT, 1),
    "depth2img": (depth, {**LATENT, "depth_map": picture(1, 8, 8), "strength": 0.6}, 0.6),
    "upscale": (upscale, LATENT, 1),
    "lcm": (lcm, {"prompt": "a", **FEW}, 1),
    "deepfloyd": (deepfloyd, {**TEXT, "height": 8, "width": 8, "output_type": "pt"}, 1),
    "kandinsky": (kandinsky, {**IMAGES, **FEW}, 1),
    "kandinsky img2img": (
        lambda: kandinsky("KandinskyV22Img2ImgPipeline"), {**IMAGES, **FEW, "image": picture(), "strength": 0.6}, 0.6,
    ),
    "kandinsky prior": (kandinsky_prior, {"prompt": "a"}, 1),
    "cascade": (cascade, {"prompt": "a", "height": 64, "width": 64, "output_type": "pt"}, 1),
    "animatediff": (animate, {"prompt": "a", "num_frames": 2, **FEW}, 1),
    "stable video": (svd, {"image": picture(1, 3, 16, 16), "num_frames": 2, **FEW, "decode_chunk_size": 2}, 1),
    "sdxl edm": (lambda: with_scheduler(sdxl(), "EDMDPMSolverMultistepScheduler"), {"prompt": "a", **FEW}, 1),
    "sd zero snr": (
        lambda: with_scheduler(
            sd(), "DDIMScheduler", **SD, rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
        ),
        {"prompt": "a", "guidance_rescale": 0.7, **FEW}, 1,
    ),
}  # fmt: skip
