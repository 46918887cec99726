"""Tiny diffusers pipelines around transformers, for the sweep: prompts come as embeddings, nothing is decoded."""

from __future__ import annotations

from typing import Any

import torch

from diffusers_tiny import clip, t5, tokens, vae
from diffusers_unets import FEW, PARTS, TEXT, embeds, made, picture, pipeline, scheduler

FLOW = "FlowMatchEulerDiscreteScheduler"


def pixart(name: str = "PixArtSigmaPipeline") -> Any:
    net = made(
        "PixArtTransformer2DModel", sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8,
        num_attention_heads=2, caption_channels=16, in_channels=4, cross_attention_dim=16, out_channels=8,
        norm_type="ada_norm_single", use_additional_conditions=False,
    )  # fmt: skip
    return pipeline(
        name, transformer=net, vae=vae(), text_encoder=None, tokenizer=None,
        scheduler=scheduler("DPMSolverMultistepScheduler"),
    )  # fmt: skip


def sana() -> Any:
    net = made(
        "SanaTransformer2DModel", patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=16, sample_size=32,
    )  # fmt: skip
    dc = made(
        "AutoencoderDC", in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock", decoder_block_types="ResBlock", encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()), decoder_norm_types="rms_norm", decoder_act_fns="silu",
    )  # fmt: skip
    sched = scheduler(
        "DPMSolverMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return pipeline("SanaPipeline", transformer=net, vae=dc, text_encoder=None, tokenizer=None, scheduler=sched)


def lumina2() -> Any:
    net = made(
        "Lumina2Transformer2DModel", sample_size=4, patch_size=2, in_channels=4, hidden_size=16, num_layers=1,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None,
        norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=16,
    )  # fmt: skip
    return pipeline(
        "Lumina2Pipeline", transformer=net, vae=vae(), text_encoder=None, tokenizer=None,
        scheduler=scheduler(FLOW, shift=6.0),
    )  # fmt: skip


def hunyuan_dit() -> Any:
    net = made(
        "HunyuanDiT2DModel", sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=16, hidden_size=16,
        activation_fn="gelu-approximate", text_len=8, text_len_t5=8,
    )  # fmt: skip
    return pipeline(
        "HunyuanDiTPipeline", transformer=net, vae=vae(), text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, scheduler=scheduler(
            "DDPMScheduler", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.02, clip_sample=False,
            prediction_type="v_prediction", steps_offset=1,
        ), **PARTS,
    )  # fmt: skip


def aura() -> Any:
    net = made(
        "AuraFlowTransformer2DModel", sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
        num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
        joint_attention_dim=16, out_channels=4, pos_embed_max_size=64,
    )  # fmt: skip
    return pipeline(
        "AuraFlowPipeline", transformer=net, vae=vae(), text_encoder=None, tokenizer=None,
        scheduler=scheduler(FLOW, shift=1.73),
    )  # fmt: skip


def cogvideo(name: str = "CogVideoXDDIMScheduler") -> Any:
    net = made(
        "CogVideoXTransformer3DModel", num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=8, text_embed_dim=16, num_layers=1, sample_width=2, sample_height=2, sample_frames=5,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8,
    )  # fmt: skip
    video = made(
        "AutoencoderKLCogVideoX", in_channels=3, out_channels=3, block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4, latent_channels=4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    sched = scheduler(
        name, prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    return pipeline("CogVideoXPipeline", transformer=net, vae=video, text_encoder=None, tokenizer=None, scheduler=sched)


def ltx(name: str = "LTXPipeline", **config: Any) -> Any:
    net = made(
        "LTXVideoTransformer3DModel", in_channels=8, out_channels=8, patch_size=1, patch_size_t=1,
        num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=1, caption_channels=16,
    )  # fmt: skip
    video = made(
        "AutoencoderKLLTXVideo", in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    known = {"use_dynamic_shifting": True, "shift_terminal": 0.1, "base_shift": 0.95, "max_shift": 2.05, **config}
    return pipeline(
        name, transformer=net, vae=video, text_encoder=None, tokenizer=None, scheduler=scheduler(FLOW, **known)
    )


def wan(**config: Any) -> Any:
    net = made(
        "WanTransformer3DModel", patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=16, freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    video = made(
        "AutoencoderKLWan", base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    known = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, **config}
    return pipeline(
        "WanPipeline", transformer=net, vae=video, text_encoder=None, tokenizer=None,
        scheduler=scheduler("UniPCMultistepScheduler", **known),
    )  # fmt: skip


def mochi() -> Any:
    net = made(
        "MochiTransformer3DModel", patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, out_channels=None, qk_norm="rms_norm", text_embed_dim=16,
        time_embed_dim=4, activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    return pipeline(
        "MochiPipeline", transformer=net, vae=None, text_encoder=None, tokenizer=None,
        scheduler=scheduler(FLOW, invert_sigmas=True),
    )  # fmt: skip


def hunyuan_video() -> Any:
    net = made(
        "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10,
        num_layers=1, num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return pipeline(
        "HunyuanVideoPipeline", transformer=net, vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, scheduler=scheduler(FLOW, shift=7.0),
    )  # fmt: skip


def stable_audio() -> Any:
    net = made(
        "StableAudioDiTModel", sample_size=4, in_channels=3, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        num_key_value_attention_heads=2, out_channels=3, cross_attention_dim=4, time_proj_dim=8,
        global_states_input_dim=8, cross_attention_input_dim=4,
    )  # fmt: skip
    oobleck = made(
        "AutoencoderOobleck", encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3,
        decoder_input_channels=3, audio_channels=2, channel_multiples=[2, 4], sampling_rate=4,
    )  # fmt: skip
    from diffusers.pipelines.stable_audio.modeling_stable_audio import StableAudioProjectionModel

    return pipeline(
        "StableAudioPipeline", transformer=net, vae=oobleck, text_encoder=t5(4), tokenizer=tokens("T5Tokenizer"),
        projection_model=StableAudioProjectionModel(text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32),
        scheduler=scheduler("EDMDPMSolverMultistepScheduler", sigma_max=500.0, sigma_min=0.3, sigma_data=1.0),
    )  # fmt: skip


def chroma() -> Any:
    net = made(
        "ChromaTransformer2DModel", patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=16, approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    return pipeline(
        "ChromaPipeline", transformer=net, vae=vae(shift_factor=0.0), text_encoder=None, tokenizer=None,
        scheduler=scheduler(FLOW, use_dynamic_shifting=True, use_beta_sigmas=True),
    )  # fmt: skip


def qwen() -> Any:
    net = made(
        "QwenImageTransformer2DModel", patch_size=2, in_channels=16, out_channels=4, num_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16, guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return pipeline(
        "QwenImagePipeline", transformer=net, vae=None, text_encoder=None, tokenizer=None,
        scheduler=scheduler(
            FLOW, use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    )  # fmt: skip


def z_image() -> Any:
    net = made(
        "ZImageTransformer2DModel", all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, norm_eps=1e-5, qk_norm=True, cap_feat_dim=16, rope_theta=256.0,
        t_scale=1000.0, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return pipeline(
        "ZImagePipeline", transformer=net, vae=vae(shift_factor=0.0), text_encoder=None, tokenizer=None,
        scheduler=scheduler(FLOW, shift=3.0),
    )  # fmt: skip


def cogview4() -> Any:
    net = made(
        "CogView4Transformer2DModel", patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, out_channels=4, text_embed_dim=16, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    return pipeline(
        "CogView4Pipeline", transformer=net, vae=vae(), text_encoder=None, tokenizer=None,
        scheduler=scheduler(
            FLOW, use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256,
            time_shift_type="linear",
        ),
    )  # fmt: skip


def flux_of(name: str, channels: int = 16, **config: Any) -> Any:
    net = made(
        "FluxTransformer2DModel", patch_size=1, in_channels=channels, out_channels=16, num_layers=1,
        num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=name == "FluxFillPipeline",
    )  # fmt: skip
    return pipeline(
        name, transformer=net, vae=vae(shift_factor=0.0), text_encoder=clip(), tokenizer=tokens(), text_encoder_2=t5(),
        tokenizer_2=tokens("T5Tokenizer"),
        scheduler=scheduler(FLOW, **({"use_dynamic_shifting": True} | config)),
    )  # fmt: skip


MASK = torch.ones(1, 8, dtype=torch.long)
MASKED = {**TEXT, "prompt_attention_mask": MASK, "negative_prompt_attention_mask": MASK}
SECOND = {f"{name}_2": value for name, value in MASKED.items()}
FLUXED = {"prompt": "a", "max_sequence_length": 16, **FEW}
SINGLE = {**MASKED, **FEW, "negative_prompt": None, "use_resolution_binning": False}
CLIP = {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
HALF = (torch.arange(16) < 8).float().expand(1, 1, 16, 16)

# name -> (pipeline, arguments, share of num_inference_steps that is run)
TRANSFORMERS: dict[str, tuple[Any, dict[str, Any], float]] = {
    "pixart alpha": (lambda: pixart("PixArtAlphaPipeline"), SINGLE, 1),
    "pixart sigma": (pixart, SINGLE, 1),
    "sana": (sana, {**SINGLE, "height": 32, "width": 32}, 1),
    "lumina2": (lumina2, {**MASKED, **FEW}, 1),
    "hunyuan dit": (hunyuan_dit, {**MASKED, **SECOND, **FEW, "use_resolution_binning": False}, 1),
    "aura flow": (aura, {**MASKED, **FEW}, 1),
    "cogvideox": (cogvideo, {**TEXT, **FEW, "num_frames": 5}, 1),
    "ltx": (ltx, {**MASKED, **CLIP}, 1),
    "ltx condition": (
        lambda: ltx("LTXConditionPipeline", use_dynamic_shifting=False, shift_terminal=None),
        {**MASKED, **CLIP, "image": picture(3, 32, 32)}, 1,
    ),
    "wan": (wan, {**TEXT, **FEW, "num_frames": 5}, 1),
    "mochi": (mochi, {**MASKED, **FEW, "num_frames": 7}, 1),
    "hunyuan video": (
        hunyuan_video,
        {"prompt_embeds": embeds(1, 8, 16), "prompt_attention_mask": MASK, "pooled_prompt_embeds": embeds(1, 8), **FEW,
         "num_frames": 5}, 1,
    ),
    "stable audio": (stable_audio, {"prompt": "a", "audio_end_in_s": 2.0, "output_type": "latent"}, 1),
    "chroma": (chroma, {**{k: v.float() for k, v in MASKED.items()}, **FEW}, 1),
    "qwen image": (qwen, {**TEXT, "prompt_embeds_mask": MASK, "negative_prompt_embeds_mask": MASK, **FEW}, 1),
    "z image": (
        z_image, {"prompt_embeds": [embeds(8, 16)], "negative_prompt_embeds": [embeds(8, 16, seed=6)], **FEW}, 1,
    ),
    "cogview4": (cogview4, {**TEXT, **FEW}, 1),
    "flux schnell": (lambda: flux_of("FluxPipeline", use_dynamic_shifting=False), FLUXED, 1),
    "flux img2img": (lambda: flux_of("FluxImg2ImgPipeline"), {**FLUXED, "image": picture(), "strength": 0.6}, 0.6),
    "flux inpaint": (
        lambda: flux_of("FluxInpaintPipeline"), {**FLUXED, "image": picture(), "mask_image": HALF, "strength": 0.8},
        0.8,
    ),
    "flux fill": (lambda: flux_of("FluxFillPipeline", 48), {**FLUXED, "image": picture(), "mask_image": HALF}, 1),
    "flux kontext": (
        lambda: flux_of("FluxKontextPipeline"), {**FLUXED, "image": picture(), "max_area": 256, "_auto_resize": False},
        1,
    ),
}  # fmt: skip
