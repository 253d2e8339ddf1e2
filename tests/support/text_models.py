"""Tiny language models with random weights and a tokenizer of a few words, in folders as the hub has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WIDTH, LAYERS, LONGEST = 16, 3, 77
WORDS = ["a", "an", "all", "is", "red", "green", "blue", "image", "circle", "square", "left", "of", "two"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
# T5 is an encoder with a decoder, CLIP a tower of text and one of images, BERT an encoder, Qwen a decoder.
KINDS = ("t5", "clip", "bert", "qwen3")


def save_text_model(folder: Path, kind: str) -> Path:
    """Write a model of a kind and its tokenizer; returns the folder."""
    import transformers

    small: dict[str, Any] = {"vocab_size": len(SPECIAL + WORDS), "pad_token_id": 0, "eos_token_id": 2}
    blocks: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if kind == "t5":
            config = transformers.T5Config(**small, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=LAYERS, num_heads=2)
            model = transformers.T5ForConditionalGeneration(config)
        elif kind == "clip":
            text: dict[str, Any] = {
                **small,
                **blocks,
                "hidden_size": WIDTH,
                "max_position_embeddings": LONGEST,
                "bos_token_id": 1,
            }
            picture: dict[str, Any] = {**blocks, "hidden_size": WIDTH, "image_size": 8, "patch_size": 4}
            model = transformers.CLIPModel(
                transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=8)
            )
        elif kind == "bert":
            model = transformers.BertForMaskedLM(
                transformers.BertConfig(**small, **blocks, hidden_size=WIDTH, max_position_embeddings=LONGEST)
            )
        else:
            model = transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(
                    **small, **blocks, hidden_size=WIDTH, num_key_value_heads=1, head_dim=8, max_position_embeddings=512
                )
            )
        for parameter in model.parameters():
            if parameter.ndim > 1:  # drawn so small by default that hidden states hardly depend on the words
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def tokenizer(kind: str) -> Any:
    """Words as tokens, with the special tokens of a kind: T5's end, CLIP's and BERT's start and end, none for Qwen."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    single = {"t5": "$A </s>", "qwen3": "$A"}.get(kind, "<s> $A </s>")
    words.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    # Padding left and no padding token, as in some decoders: it must not matter.
    padding: dict[str, Any] = {} if kind == "qwen3" else {"pad_token": "<pad>"}
    side = "left" if kind == "qwen3" else "right"
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side=side,
        model_max_length=512 if kind in ("t5", "qwen3") else LONGEST, **padding,
    )  # fmt: skip
