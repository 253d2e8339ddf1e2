"""Checkpoints of DiT, SiT, REPA and LightningDiT: the imported network against the public one, and what is guessed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from public_networks import checkpoint, forward
from torch import Tensor

from ditlab.interop import official
from ditlab.interop.checkpoint import find_weights, read_weights
from ditlab.interop.settings import Choices
from ditlab.models import Condition

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.0, 0.3, 1.0])  # noise at 1, as in ditlab
LABELS = torch.tensor([0, 9, 10])  # the last row is the null class
SIT = argparse.Namespace(model="SiT-XL/2", num_classes=10, path_type="Linear", prediction="velocity")
REPA = argparse.Namespace(model="SiT-XL/2", num_classes=10, path_type="linear", prediction="v")
LIGHTNING: dict[str, Any] = {"rms": True, "swiglu": 88, "rope": True, "out": 1}

Refuses = Callable[..., str]


def imported(content: object, name: str = "model.pt", **choices: Any) -> official.Imported:
    return official.imported(find_weights(content, Path(name)), Path(name), Choices(**choices))


def notes(found: official.Imported) -> str:
    return "; ".join(found.notes)


def output(found: official.Imported, t: Tensor) -> Tensor:
    """What the sampler gets: of images at times t, with the network time of the process."""
    condition = Condition.of_labels(torch.where(found.network.spec.classes > LABELS, LABELS, -1))
    with torch.no_grad():
        return found.network(X, found.diffusion.build_schedule().network_time(t), condition)


def test_dit_is_read_with_its_rows_as_times():
    tensors = checkpoint()
    found = imported({"ema": tensors, "args": argparse.Namespace(num_classes=10)}, heads=2)
    expected = forward(tensors, 2, X, (T * 999).round(), LABELS)
    torch.testing.assert_close(output(found, T), expected, rtol=1e-4, atol=1e-4)
    assert (found.diffusion.schedule, found.diffusion.target) == ("linear-beta", "epsilon")
    assert found.diffusion.learned_variance


@pytest.mark.parametrize(
    ("tensors", "settings"),
    [
        (checkpoint(), {"args": SIT}),
        (checkpoint(out=1), {"args": vars(SIT)}),
        (checkpoint(out=1), {"config": {"model": {"model_type": "LightningDiT-B/1"}, "data": {"num_classes": 10}}}),
        (checkpoint(**LIGHTNING), {}),
        (checkpoint(**LIGHTNING, qk_norm=True), {}),
        (checkpoint(rms=True, out=1), {}),
        (checkpoint(swiglu=85, out=1), {}),  # made a multiple of 8
        (checkpoint(rope=True, out=1), {}),
    ],
    ids=["SiT", "SiT, no variance", "LightningDiT by name", "LightningDiT", "qk-norm", "RMS norms", "SwiGLU", "RoPE"],
)
def test_networks_of_sits_convention_give_the_velocity_at_the_reversed_time(tensors, settings):
    found = imported({"ema": tensors, **settings}, heads=2)
    theirs = forward(tensors, 2, X, 1 - T, LABELS)[:, :4]  # SiT: noise at 0; it drops the other channels
    torch.testing.assert_close(output(found, T), -theirs, rtol=1e-4, atol=2e-4)  # it predicts data - noise
    assert (found.diffusion.schedule, found.diffusion.target) == ("rectified-flow", "velocity")
    assert "SiT's" in notes(found)


@pytest.mark.parametrize("marked", ["args", "projectors"])
def test_repa_has_time_and_velocity_as_ditlab(marked: str):
    tensors = checkpoint(out=1)
    content: dict[str, object] = {"ema": dict(tensors), "args": REPA} if marked == "args" else {"ema": dict(tensors)}
    if marked == "projectors":
        content["ema"] = {**tensors, "projectors.0.0.weight": torch.zeros(4, 32)}
    found = imported(content, heads=2)
    torch.testing.assert_close(output(found, T), forward(tensors, 2, X, T, LABELS), rtol=1e-4, atol=1e-4)
    assert "REPA's" in notes(found)
    assert marked == "args" or "1 tensors of REPA's projectors" in notes(found)


def test_the_velocity_is_that_of_the_path_from_data_to_noise():
    """A SiT that knows its data exactly gives, at every time, the data and noise that it was made of."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in checkpoint(out=1, patch=1, side=8).items()}
    tensors["pos_embed"] = checkpoint(patch=1, side=8)["pos_embed"]
    tensors["final_layer.linear.bias"] = torch.tensor([1.0, -2.0, 0.5, 3.0])  # data - noise, as SiT predicts
    found = imported({"model": tensors, "args": SIT}, heads=2)
    torch.testing.assert_close(output(found, T)[0, :, 0, 0], torch.tensor([-1.0, 2.0, -0.5, -3.0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path_type": "GVP"}, ["path GVP", "linear"]),
        ({"path_type": "VP", "prediction": "score"}, ["VP", "score"]),
        ({"prediction": "noise"}, ["predict noise", "velocity"]),
    ],
)
def test_other_paths_and_targets_are_refused_by_name(changes: dict, words: list[str], refuses: Refuses):
    content = {"model": checkpoint(), "args": argparse.Namespace(**{**vars(SIT), **changes})}
    refuses(lambda: imported(content, heads=2), *words)


def test_the_process_is_chosen_named_or_said_to_be_assumed():
    tensors = checkpoint()
    assert "assumed" in notes(imported(tensors, heads=2))
    assert "from the file's name" in notes(imported(tensors, "SiT-XL-2-256x256.pt", heads=2))
    assert "linear" in imported(tensors, "transit.pt", heads=2).diffusion.schedule
    assert imported(tensors, heads=2, process="sit").diffusion.target == "velocity"
    assert imported({"ema": tensors, "args": SIT}, heads=2, process="dit").diffusion.target == "epsilon"


def test_rotary_positions_of_other_frequencies_are_refused(refuses: Refuses):
    tensors = checkpoint(**LIGHTNING)
    tensors["feat_rope.freqs_cos"] = tensors["feat_rope.freqs_cos"].roll(1, dims=0)
    refuses(lambda: imported(tensors), "other frequencies")


# Heads


@pytest.mark.parametrize("name", ["num_heads", "heads", "num_attention_heads"])
def test_heads_of_the_settings_are_used(name: str):
    tensors = checkpoint(width=96)
    found = imported({"ema": tensors, "config": {"model": {name: 3}}})
    assert found.network.config.heads == 3
    torch.testing.assert_close(
        output(found, T), forward(tensors, 3, X, (T * 999).round(), LABELS), rtol=1e-4, atol=2e-4
    )


def test_heads_are_read_off_rotary_positions_and_norms_of_queries():
    assert imported(checkpoint(width=96, heads=3, rope=True)).network.config.heads == 3
    assert imported(checkpoint(width=96, heads=6, qk_norm=True)).network.config.heads == 6


@pytest.mark.parametrize(("width", "heads"), [(96, 2), (64, 1), (320, 5), (32, 1), (44, 1)])
def test_guessed_heads_are_said(width: int, heads: int):
    found = imported(checkpoint(width=width, heads=1))
    assert found.network.config.heads == heads
    assert "guessed" in notes(found)
    assert "--heads" in notes(found)
    assert "guessed" not in notes(imported(checkpoint(width=width, heads=1), heads=1))


def test_the_papers_heads_are_those_of_the_model_that_is_named():
    tensors = checkpoint(width=384, depth=1)
    assert imported(tensors).network.config.heads == 6
    assert "paper" in notes(imported(tensors))
    assert "DiT-S/2" in notes(imported({"ema": tensors, "args": argparse.Namespace(model="DiT-S/2")}))


# Classes


@pytest.mark.parametrize(
    ("rows", "settings", "chosen", "expected"),
    [
        (11, {"num_classes": 10}, 0, (10, True)),
        (10, {"num_classes": 10}, 0, (10, False)),
        (10, {"class_dropout_prob": 0.0}, 0, (10, False)),
        (11, {}, 0, (10, True)),
        (11, {}, 11, (11, False)),
        (11, {"num_classes": 11}, 10, (10, True)),
        (1000, {}, 0, (1000, False)),
        (1001, {}, 0, (1000, True)),
        (1, {}, 0, (0, True)),
        (1, {"num_classes": 1}, 0, (1, False)),
    ],
)
def test_classes_with_and_without_a_null_class(rows, settings, chosen, expected):
    found = imported({"ema": checkpoint(rows=rows), "args": argparse.Namespace(**settings)}, heads=2, classes=chosen)
    (labels,) = found.network.spec.conditions
    assert (labels.classes, labels.null) == expected
    assert (found.diffusion.condition_dropout > 0) == labels.null
    assert "classes: " in notes(found)


def test_classes_that_the_table_cannot_have_are_refused(refuses: Refuses):
    content = {"ema": checkpoint(), "args": argparse.Namespace(num_classes=1000)}
    refuses(lambda: imported(content, heads=2), "the settings in the file", "1000 classes", "11 rows", "--classes 11")
    refuses(lambda: imported(content, heads=2, classes=7), "--classes has 7")


def test_a_network_without_labels_is_unconditional():
    tensors = checkpoint()
    del tensors["y_embedder.embedding_table.weight"]
    found = imported(tensors, heads=2)
    assert found.network.spec.classes == 0
    table = {"y_embedder.embedding_table.weight": torch.zeros(1, 32)}
    expected = forward({**tensors, **table}, 2, X, (T * 999).round(), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(output(found, T), expected, rtol=1e-4, atol=1e-4)


# Nests and prefixes


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


WEIGHTS, OTHER = checkpoint(), checkpoint(seed=1)
PER_BLOCK = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in WEIGHTS.items()}
LAYERS = {f"vae.{name}": torch.zeros(2) for name in ("encoder.weight", "decoder.weight")}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"ema": prefixed(WEIGHTS, "module."), "model": OTHER},
        prefixed(WEIGHTS, "_orig_mod."),
        {"ema": prefixed(WEIGHTS, "module._orig_mod."), "model": prefixed(OTHER, "module.")},
        PER_BLOCK,
        {
            "model": WEIGHTS,
            "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}},
            "args": argparse.Namespace(num_classes=10),
        },
        {"state_dict": prefixed(WEIGHTS, "model."), "epoch": 1, "global_step": 1, "optimizer_states": []},
        {"state_dict": {**prefixed(WEIGHTS, "net."), **LAYERS}, "hyper_parameters": {"num_classes": 10}},
        {"state_dict": prefixed(OTHER, "model."), "callbacks": {"EMA": {"ema_state": prefixed(WEIGHTS, "model.")}}},
        {"state_dict": {**prefixed(OTHER, "net."), **prefixed(WEIGHTS, "ema_net.")}},
        {
            **prefixed(OTHER, "online_model.module."),
            **prefixed(WEIGHTS, "ema_model.module."),
            "step": torch.tensor(3.0),
        },
        {"module": WEIGHTS, "optimizer": {}},  # DeepSpeed
        {"model": {"ema": WEIGHTS, "raw": OTHER}, "step": 3},
        {"ema": {}, "model": WEIGHTS},
        prefixed(WEIGHTS, "diffusion_model.transformer."),
    ],
    ids=lambda content: next(iter(content)) if isinstance(content, dict) else "",
)
def test_nests_and_prefixes_are_found(content: dict[str, object]):
    found = find_weights(content, Path("model.pt"))
    assert found.tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in found.tensors.items())


def test_what_was_chosen_is_said():
    (note,) = find_weights({"model": prefixed(OTHER, "module."), "ema": WEIGHTS}, Path("model.pt")).notes
    assert note == "weights: ema; not used: model"
    (note,) = find_weights({"state_dict": prefixed(WEIGHTS, "net.")}, Path("model.ckpt")).notes
    assert note == "weights: state_dict: net., no moving average (EMA)"
    assert find_weights(WEIGHTS, Path("model.pt")).notes == ()


def test_shards_are_read_together(tmp_path: Path, refuses: Refuses):
    from safetensors.torch import save_file

    names = list(WEIGHTS)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, listed in parts.items():
        save_file({name: WEIGHTS[name] for name in listed}, tmp_path / file)
    for name in parts:
        assert read_weights(tmp_path / name).tensors.keys() == WEIGHTS.keys()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    refuses(lambda: read_weights(tmp_path / "model-00002-of-00002.safetensors"), "model-00001-of-00002", "missing")


# What it is instead

FOREIGN = {
    "PixArt": {**WEIGHTS, "y_embedder.y_proj.fc1.weight": torch.zeros(2), "y_embedder.embedding_table.weight": None},
    "Stable Diffusion 3": {
        "x_embedder.proj.weight": torch.zeros(8, 4, 2, 2),
        "joint_blocks.0.x_block.weight": torch.zeros(2),
    },
    "FLUX": {"img_in.weight": torch.zeros(2), "double_blocks.0.img_attn.qkv.weight": torch.zeros(2)},
    "U-Net": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)},
    "autoencoder": {"state_dict": {"encoder.down.0.block.0.conv1.weight": torch.zeros(2)}},
    "LoRA": {"transformer.blocks.0.attn.qkv.lora_A.weight": torch.zeros(2)},
    "U-ViT": {"in_blocks.0.attn.qkv.weight": torch.zeros(2), "mid_block.attn.qkv.weight": torch.zeros(2)},
    "MDT": {**WEIGHTS, "sideblocks.0.attn.qkv.weight": torch.zeros(2), "mask_token": torch.zeros(2)},
    "a model of ditlab": {"network.blocks.0.mlp.up.weight": torch.zeros(2)},
    "'x_embedder.proj.weight'": {"layers.0.weight": torch.zeros(2)},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_other_networks_are_refused_by_their_name(what: str, refuses: Refuses):
    content = {name: value for name, value in FOREIGN[what].items() if value is not None}
    refuses(lambda: imported(content), "another architecture", what)


def test_settings_with_paths_are_read_and_code_is_named(tmp_path: Path, refuses: Refuses):
    settings = argparse.Namespace(num_classes=10, results_dir=Path("runs") / "a")
    torch.save({"ema": WEIGHTS, "args": settings}, tmp_path / "model.pt")
    assert read_weights(tmp_path / "model.pt").settings["num_classes"] == 10
    torch.save({"ema": WEIGHTS, "args": Fraction(1, 2)}, tmp_path / "model.pt")
    refuses(lambda: read_weights(tmp_path / "model.pt"), "fractions.Fraction", "state_dict alone")
