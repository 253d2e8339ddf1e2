"""PixArt-alpha's checkpoints, public and of diffusers: the imported network against diffusers', and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from specs import text_entry
from text_models import WIDTH as TEXT_WIDTH
from text_models import save_text_model
from torch import Tensor, nn

from ditlab.interop import pixart
from ditlab.interop.checkpoint import find_weights
from ditlab.interop.importing import import_model
from ditlab.interop.settings import Choices
from ditlab.models import Condition, Network
from ditlab.models.layout import sincos_positions
from ditlab.pipelines import Pipeline

WIDTH, HEADS, SIDE, FEATURES, NULL = 32, 4, 8, 12, 5
Refuses = Callable[..., str]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A tiny transformer with no weight at zero."""
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=WIDTH, sample_size=SIDE, patch_size=2, caption_channels=FEATURES,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return network


def public(network: Any) -> dict[str, Tensor]:
    """The same weights by the names of the public code, with its positions and the features of no caption."""
    tensors = {"pos_embed": sincos_positions(WIDTH, (SIDE // 2, SIDE // 2))[None]}
    tensors["y_embedder.y_embedding"] = torch.randn(NULL, FEATURES, generator=torch.Generator().manual_seed(1))

    def put(name: str, *modules: nn.Module) -> None:
        for kind in ("weight", "bias"):
            tensors[f"{name}.{kind}"] = torch.cat([module.get_parameter(kind).detach() for module in modules])

    time, caption = network.adaln_single.emb.timestep_embedder, network.caption_projection
    put("x_embedder.proj", network.pos_embed.proj)
    put("t_embedder.mlp.0", time.linear_1)
    put("t_embedder.mlp.2", time.linear_2)
    put("t_block.1", network.adaln_single.linear)
    put("y_embedder.y_proj.fc1", caption.linear_1)
    put("y_embedder.y_proj.fc2", caption.linear_2)
    for n, block in enumerate(network.transformer_blocks):
        tensors[f"blocks.{n}.scale_shift_table"] = block.scale_shift_table.detach()
        put(f"blocks.{n}.attn.qkv", block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        put(f"blocks.{n}.attn.proj", block.attn1.to_out[0])
        put(f"blocks.{n}.cross_attn.q_linear", block.attn2.to_q)
        put(f"blocks.{n}.cross_attn.kv_linear", block.attn2.to_k, block.attn2.to_v)
        put(f"blocks.{n}.cross_attn.proj", block.attn2.to_out[0])
        put(f"blocks.{n}.mlp.fc1", block.ff.net[0].proj)
        put(f"blocks.{n}.mlp.fc2", block.ff.net[2])
    tensors["final_layer.scale_shift_table"] = network.scale_shift_table.detach()
    put("final_layer.linear", network.proj_out)
    return tensors


X, T = torch.randn(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2)), torch.tensor([0.0, 250.0, 999.0])
TEXT = text_entry((2, 7, 1), 7, FEATURES)


@torch.no_grad()
def check_captions(network: Network, theirs: Any) -> None:
    assert TEXT.mask is not None
    expected = theirs(X, TEXT.value, T, encoder_attention_mask=TEXT.mask.long()).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(network(X, T, Condition({"text": TEXT})), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def check_null(network: Network, theirs: Any, features: Tensor) -> None:
    """Where captions are absent the output is that of these features (K, E), all attended to."""
    expected = theirs(X, features.expand(3, -1, -1), T).sample
    torch.testing.assert_close(network(X, T, Condition({"text": TEXT}).null()), expected, atol=1e-5, rtol=0)


def test_a_public_checkpoint_is_imported_with_its_null(theirs: Any, tmp_path: Path):
    tensors, log = public(theirs), list[str]()
    torch.save({"state_dict": {}, "state_dict_ema": tensors}, tmp_path / "PixArt.pth")
    out = import_model(str(tmp_path / "PixArt.pth"), tmp_path / "model", "pixels", Choices(heads=HEADS), log=log.append)
    model = Pipeline.load(out)
    check_captions(model.network, theirs)
    check_null(model.network, theirs, tensors["y_embedder.y_embedding"])
    assert (model.diffusion.schedule, model.diffusion.target) == ("linear-beta", "epsilon")
    assert model.diffusion.learned_variance
    assert "adaln-cross-attention" in log[0]


def test_a_folder_of_diffusers_is_imported_and_gets_its_null_from_an_empty_prompt(theirs: Any, tmp_path: Path):
    theirs.save_pretrained(tmp_path / "transformer")
    log = list[str]()
    network = Pipeline.load(
        import_model(str(tmp_path / "transformer"), tmp_path / "model", "pixels", log=log.append)
    ).network
    check_captions(network, theirs)
    assert any("text encoder: none, so no prompts and no guidance; give --text" in line for line in log)
    empty = torch.randn(1, FEATURES, generator=torch.Generator().manual_seed(3))
    pixart.set_null(network, empty)  # type: ignore[arg-type]
    check_null(network, theirs, empty)


def test_a_folder_of_the_pipeline_is_imported_with_its_vae_and_how_it_samples(
    theirs: Any, tmp_path: Path, refuses: Refuses
):
    folder = tmp_path / "pipeline"
    theirs.save_pretrained(folder / "transformer")
    config: dict[str, Any] = {
        "block_out_channels": (4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = diffusers.AutoencoderKL(**config, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    vae.save_pretrained(folder / "vae")
    diffusers.DPMSolverMultistepScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    index = {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    model = Pipeline.load(import_model(str(folder), tmp_path / "model"))
    check_captions(model.network, theirs)
    assert model.autoencoder.factor == 2
    assert model.defaults.sampler == "dpm-solver"
    assert (model.defaults.steps, model.defaults.guidance.scale) == (20, 4.5)
    diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    refuses(lambda: import_model(str(folder), tmp_path / "other"), "beta_schedule scaled_linear")
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text encoder and tokenizer of a pipeline, in two folders as diffusers has them."""
    whole = save_text_model(tmp_path_factory.mktemp("t5"), "t5")
    folder = tmp_path_factory.mktemp("pipeline")
    transformers.T5EncoderModel.from_pretrained(whole).save_pretrained(folder / "text_encoder")
    transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(folder / "tokenizer")
    return folder


def test_prompts_of_an_imported_pipeline_are_encoded_as_diffusers_encodes_them(
    theirs: Any, t5: Path, tmp_path: Path, refuses: Refuses
):
    """Against encode_prompt of PixArtAlphaPipeline: features, mask, and those of the empty prompt, lower case included."""
    config = theirs.config | {"caption_channels": TEXT_WIDTH}
    network: Any = diffusers.PixArtTransformer2DModel.from_config(config)
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    network.eval().save_pretrained(tmp_path / "transformer")
    log = list[str]()
    out = import_model(
        str(tmp_path / "transformer"), tmp_path / "model", "pixels", text=str(t5 / "text_encoder"), log=log.append
    )
    assert any(line == f"text encoder: {t5 / 'text_encoder'}" for line in log)
    model = Pipeline.load(out)
    pipeline = diffusers.PixArtAlphaPipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(t5 / "tokenizer"),
        text_encoder=transformers.T5EncoderModel.from_pretrained(t5 / "text_encoder"),
        vae=diffusers.AutoencoderKL(), transformer=network, scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip
    prompts = ["A RED circle left of a blue square", "two Green", "a"]
    features, mask, empty, empty_mask = pipeline.encode_prompt(prompts, clean_caption=False)
    with torch.no_grad():
        expected = network(X, features, T, encoder_attention_mask=mask).sample
        nothing = network(X, empty, T, encoder_attention_mask=empty_mask).sample
        condition = model.condition(prompts, 3)
        torch.testing.assert_close(model.network(X, T, condition), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.network(X, T, condition.null()), nothing, atol=1e-5, rtol=0)
    assert (expected - nothing).abs().max() > 0.01
    assert model.sample(prompts=prompts[:2], steps=2).shape == (2, SIDE, SIDE, 4)
    assert model.text is not None
    assert model.text.tokens("A Red circle") == ["a", "red", "circle", "</s>"]
    theirs.save_pretrained(tmp_path / "other")
    said = refuses(
        lambda: import_model(str(tmp_path / "other"), tmp_path / "x", "pixels", text=str(t5 / "text_encoder"))
    )
    assert f"has {TEXT_WIDTH} features, the network takes {FEATURES}" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"csize_embedder.mlp.0.weight": torch.zeros(2)}, ["resolution and aspect ratio", "csize_embedder"]),
        ({"pos_embed": sincos_positions(WIDTH, (4, 4))[None] * 0.5}, ["positions", "unscaled"]),
        ({"pos_embed": None}, ["'pos_embed' is missing"]),
        ({"blocks.1.cross_attn.proj.bias": None}, ["lacks tensor 'blocks.1.cross_attn.proj.bias'"]),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(8)}, ["unknown tensor", "attn.q_norm.weight"]),
        ({"final_layer.scale_shift_table": torch.zeros(3, WIDTH)}, ["'final_layer.scale_shift_table' is (96,)"]),
    ],
)
def test_other_layouts_are_refused_by_what_differs(
    theirs: Any, change: dict[str, Any], words: list[str], refuses: Refuses
):
    tensors = {name: tensor for name, tensor in (public(theirs) | change).items() if tensor is not None}
    refuses(
        lambda: pixart.imported(find_weights(tensors, Path("a.pt")), Path("a.pt"), Choices(heads=HEADS)), "a.pt", *words
    )


def test_classes_and_other_processes_are_refused(theirs: Any, refuses: Refuses):
    weights = find_weights(public(theirs), Path("a.pt"))
    for choices in (Choices(classes=10), replace(Choices(), process="sit")):
        refuses(lambda choices=choices: pixart.imported(weights, Path("a.pt"), choices), "takes text", "omit --classes")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_additional_conditions": True}, ["resolution and aspect ratio"]),
        ({"use_additional_conditions": None, "sample_size": 128}, ["resolution and aspect ratio"]),
        ({"interpolation_scale": 2}, ["interpolation_scale"]),
        ({"attention_type": "gated"}, ["attention_type gated"]),
        ({"num_layers": 3}, ["lack the tensor 'transformer_blocks.2"]),
        ({"patch_size": None}, ["does not describe a transformer"]),
    ],
)
def test_other_networks_of_diffusers_are_refused_by_what_differs(
    theirs: Any, tmp_path: Path, change: dict[str, Any], words: list[str], refuses: Refuses
):
    theirs.save_pretrained(tmp_path)
    refuses(lambda: pixart.read_transformer(tmp_path, {**theirs.config, **change}), str(tmp_path), *words)
