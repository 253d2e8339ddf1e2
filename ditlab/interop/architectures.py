"""What a file of weights is, by the names of its tensors, so that a refusal names the true cause."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Regular expressions for names of tensors, most specific first, and what has them.
SIGNATURES = {
    r"lora_[AB]\b|lora_(down|up)\b|\.hada_w1": "a LoRA, a change to another model; merge it into that model first",
    r"joint_blocks\.|attn\.add_q_proj|attn2?\.norm_added_q": "an MMDiT as Stable Diffusion 3's, a text-to-image model",
    r"double_blocks\.|single_transformer_blocks\.": "FLUX or a model like it, a text-to-image model",
    r"y_embedder\.y_proj|caption_projection|adaln_single": "PixArt or a model like it, a text-to-image model",
    r"text_embedding_padding|clip_text|pooler\.": "Hunyuan-DiT or a model like it, a text-to-image model",
    r"(^|\.)(text_model|text_encoder|cond_stage_model)\.": "a text encoder, or a text-to-image model with its text encoder",
    r"(transformer_blocks\.\d+|attentions\.\d+).*attn2\.": "a text-to-image network with cross-attention",
    r"(^|\.)input_blocks\.\d": "a U-Net as ADM's or Stable Diffusion's",
    r"(^|\.)(down_blocks\.\d+\.resnets|mid_block\.(resnets|attentions))": "a U-Net or VAE of diffusers",
    r"(^|\.)(encoder\.down\.\d|decoder\.up\.\d|quant_conv)": "an autoencoder; give it, as a folder of diffusers, to --vae",
    r"(^|\.)(in_blocks|out_blocks)\.\d": "a U-ViT",
    r"(^|\.)(en_inblocks|sideblocks|mask_token)": "an MDT or MaskDiT, whose blocks are masked",
    r"(^|\.)s_embedder|dec_feat_rope": "a DDT or a DiT with a head of its own",
    r"in_context_posemb|x_embedder\.proj1": "a JiT",
    r"(^|\.)(patch_embedding\.weight|temp_embed|blocks_temporal)": "a video transformer",
    r"diffloss\.": "a MAR, an autoregressive model",
    r"(^|\.)(cls_token|fc\.weight|classifier\.|head\.weight)": "a network that classifies or extracts features",
    r"^network\.": "a model of ditlab; use the folder that contains it",
}


def identify(names: Iterable[str]) -> str:
    """What has tensors of these names: ``a U-ViT``; empty if unknown."""
    listed = list(names)
    return next((what for pattern, what in SIGNATURES.items() if any(re.search(pattern, each) for each in listed)), "")
