"""Checkpoints in the public DiT layout, in and out, and what is refused."""

from __future__ import annotations

import argparse
import io
import pickle
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import class_count, image_spec
from torch import Tensor, nn

import ditlab
from ditlab.cli.main import main
from ditlab.errors import UserError
from ditlab.interop import official
from ditlab.interop.importing import import_model
from ditlab.models import Condition, DiT, DiTConfig, Network, NetworkSpec, UNet, UNetConfig

SHAPE = image_spec(4, 8, 8, classes=10, learned_variance=True)


def network(width: int = 64, depth: int = 2, shape: NetworkSpec = SHAPE, patch: int = 2, **config: Any) -> DiT:
    """A network of the heads the layout implies, no weight of which is zero."""
    heads = {384: 6, 768: 12, 1024: 16, 1152: 16}.get(width, max(1, width // 64))
    built = DiT(DiTConfig(depth=depth, width=width, heads=heads, patch=patch, **config), shape)
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return built.eval()


def output(model: Network) -> Tensor:
    shape, generator = model.spec, torch.Generator().manual_seed(1)
    x = torch.randn(3, shape.latent.channels, shape.latent.size[0], shape.latent.size[1], generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([0, 500, 999]), Condition.of_labels(torch.tensor([0, class_count(shape) - 1, -1])))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        official.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("form", ["bare", "ema", "training", "legacy", "safetensors", "half precision"])
def test_what_is_written_is_read_back(form: str, tmp_path: Path) -> None:
    ours = network()
    tensors = official.state_dict(ours)
    path = tmp_path / ("DiT.safetensors" if form == "safetensors" else "DiT.pt")
    if form == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif form == "ema":
        torch.save({"model": {}, "ema": tensors}, path)
    elif form == "training":  # all that the public training script keeps, its parsed command line too
        other = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        arguments = argparse.Namespace(model="DiT-XL/2", image_size=256, data_path="/data")
        torch.save({"model": other, "ema": tensors, "opt": {"state": {0: {"step": 3}}}, "args": arguments}, path)
    elif form == "half precision":
        torch.save({name: tensor.half() for name, tensor in tensors.items()}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "bare")
    read = official.read(path)
    assert not read.training
    if form == "half precision":
        assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
        torch.testing.assert_close(output(read), output(ours), atol=0.02, rtol=0.02)
        return
    assert (read.config, read.spec) == (ours.config, ours.spec)
    assert torch.equal(output(read), output(ours))


@pytest.mark.parametrize(
    "built",
    [
        network(patch=4, shape=image_spec(3, 16, 16, classes=2)),
        network(width=48, depth=1, mlp_ratio=49 / 48),
        network(depth=11, width=32),
        network(shape=image_spec(4, 8, 8, classes=0)),
    ],
    ids=["patch 4, variance fixed", "odd inner width", "more than ten blocks", "unconditional"],
)
def test_the_shape_is_read_off_the_tensors(built: DiT, tmp_path: Path) -> None:
    torch.save(official.state_dict(built), tmp_path / "DiT.pt")
    read = official.read(str(tmp_path / "DiT.pt"))
    assert (read.config, read.spec) == (built.config, built.spec)
    assert torch.equal(output(read), output(built))


def test_names_and_shapes_are_exactly_the_public_ones() -> None:
    width, depth = 64, 2
    linears = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (2 * 2 * 2 * 4, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for n in range(depth):
        linears |= {
            f"blocks.{n}.attn.qkv": (3 * width, width),
            f"blocks.{n}.attn.proj": (width, width),
            f"blocks.{n}.mlp.fc1": (4 * width, width),
            f"blocks.{n}.mlp.fc2": (width, 4 * width),
            f"blocks.{n}.adaLN_modulation.1": (6 * width, width),
        }
    expected: dict[str, tuple[int, ...]] = {"pos_embed": (1, 16, width)}
    expected |= {"y_embedder.embedding_table.weight": (11, width)}
    expected |= {"x_embedder.proj.weight": (width, 4, 2, 2), "x_embedder.proj.bias": (width,)}
    for name, shape in linears.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert {name: tuple(tensor.shape) for name, tensor in official.state_dict(network()).items()} == expected


def test_a_copy_is_given_out() -> None:
    ours = network()
    before = output(ours)
    for tensor in official.state_dict(ours).values():
        tensor.zero_()
    assert torch.equal(output(ours), before)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16), (256, 4), (32, 1)])
def test_heads_are_those_of_the_papers_widths(width: int, heads: int, tmp_path: Path) -> None:
    torch.save(official.state_dict(network(width, depth=1)), tmp_path / "DiT.pt")
    assert official.read(tmp_path / "DiT.pt").config.heads == heads


def test_other_heads_have_to_be_told(tmp_path: Path) -> None:
    ours = DiT(DiTConfig(depth=2, width=64, heads=4), SHAPE).eval()
    ours.load_state_dict(network().state_dict())
    torch.save(official.state_dict(ours), tmp_path / "DiT.pt")
    read = official.read(tmp_path / "DiT.pt", heads=4)
    assert read.config.heads == 4
    assert torch.equal(output(read), output(ours))
    assert not torch.allclose(output(official.read(tmp_path / "DiT.pt")), output(ours), atol=1e-4)
    with pytest.raises(UserError, match="7 heads"):
        official.read(tmp_path / "DiT.pt", heads=7)


@pytest.mark.parametrize(
    ("built", "word"),
    [
        (network(block="cross-attention"), "cross-attention"),
        (network(mlp="swiglu", qk_norm=True), "mlp swiglu, qk_norm True"),
        (network(positions="rotary"), "positions rotary"),
        (network(shape=image_spec(4, 8, 12, classes=10)), "8x12"),
        (network(shape=image_spec(4, 8, 8, classes=10, null=False)), "no null class"),
    ],
    ids=["another block", "what came after", "rotary", "rectangle", "no null class"],
)
def test_networks_the_layout_has_no_place_for_are_refused(built: DiT, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        official.state_dict(built)
    assert "\n" not in str(caught.value)


def test_a_unet_is_refused_since_the_layout_holds_dits() -> None:
    with pytest.raises(UserError, match="this network is a U-Net") as caught:
        official.state_dict(UNet(UNetConfig(width=8), SHAPE))
    assert "\n" not in str(caught.value)


class Trap:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, bytes]]:
        return _spring, (str(self.target), b"sprung")


def _spring(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4", "inside ema"])
def test_a_pickle_with_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    target, path = tmp_path / "sprung", tmp_path / "DiT.pt"
    content: dict[str, object] = {**official.state_dict(network()), "extra": Trap(target)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"extra": Trap(target)}, protocol=int(form[-1])))
    elif form == "inside ema":
        torch.save({"ema": content, "args": argparse.Namespace(trap=Trap(target))}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    assert "refused" in message
    assert "code" in message
    assert not target.exists()
    pickle.loads(pickle.dumps(Trap(target)))  # the trap works where it is not stopped
    assert target.read_bytes() == b"sprung"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_cut_off_file_is_one_line(suffix: str, legacy: bool, kept: float, tmp_path: Path) -> None:
    path, tensors = tmp_path / f"DiT.{suffix}", official.state_dict(network(depth=1, width=16))
    if suffix == "pt":
        torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    else:
        safetensors.torch.save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is a text\n",
        b"<!DOCTYPE html><html>404</html>",
        b'{"a": 1}',
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        bytes(999),
    ],
    ids=["text", "html", "json", "png", "zeros"],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_is_no_checkpoint_is_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"DiT.{suffix}"
    path.write_bytes(content)
    refusal(path)


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_one_line_or_does_no_harm(legacy: bool, changes: list[tuple[int, int]]) -> None:
    content = io.BytesIO()
    torch.save(official.state_dict(network(depth=1, width=16)), content, _use_new_zipfile_serialization=not legacy)
    damaged = bytearray(content.getvalue())
    for place, byte in changes:
        damaged[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "DiT.pt"
        path.write_bytes(damaged)
        try:
            official.read(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (not every change is an error)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    assert "no checkpoint" in refusal(tmp_path / "missing.pt")
    assert "no checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"epoch": 3}, {1: torch.zeros(2)}, {"ema": {"x": 1}}, torch.zeros(2)]
)
def test_what_is_no_dictionary_of_tensors_is_one_line(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "DiT.pt")
    assert "not in the public DiT layout" in refusal(tmp_path / "DiT.pt")


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors = official.state_dict(network())
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    return tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pos_embed": None}, ["pos_embed"]),
        ({"x_embedder__proj__weight": None}, ["x_embedder.proj.weight"]),
        ({"x_embedder__proj__weight": torch.zeros(64, 16)}, ["public DiT layout"]),
        ({"blocks__1__attn__proj__bias": None}, ["lacks", "blocks.1.attn.proj.bias"]),
        ({"blocks__1__mlp__fc1__weight": torch.zeros(255, 64)}, ["(255, 64)", "(256, 64)"]),
        ({"blocks__0__adaLN_modulation__1__weight": torch.zeros(4 * 64, 64)}, ["4 modulation"]),
        ({"blocks__0__attn__scale": torch.zeros(64)}, ["unknown", "blocks.0.attn.scale"]),
        ({"blocks__7__attn__proj__bias": torch.zeros(64)}, ["lacks", "blocks.2."]),
        ({"pos_embed": torch.zeros(1, 16, 64)}, ["positions"]),
        ({"pos_embed": torch.zeros(1, 15, 64)}, ["15 positions"]),
        ({"pos_embed": torch.zeros(64)}, ["public DiT layout"]),
        ({"final_layer__linear__weight": torch.zeros(48, 64)}, ["(48, 64)"]),
    ],
)
def test_another_architecture_is_one_line_that_names_the_difference(
    changes: dict[str, Tensor | None], words: list[str], tmp_path: Path
) -> None:
    torch.save(changed(**changes), tmp_path / "DiT.pt")
    message = refusal(tmp_path / "DiT.pt")
    assert "another architecture" in message
    for word in words:
        assert word in message


def test_learned_positions_of_a_different_width_do_not_pass(tmp_path: Path) -> None:
    torch.save(changed(pos_embed=torch.zeros(1, 16, 32)), tmp_path / "DiT.pt")
    assert "positions" in refusal(tmp_path / "DiT.pt")


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    config: dict[str, Any] = {
        "block_out_channels": (4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    tiny = diffusers.AutoencoderKL(**config, layers_per_block=1, norm_num_groups=2, scaling_factor=0.5)
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"ema": official.state_dict(network())}, tmp_path / "DiT.pt")
    return tmp_path / "DiT.pt"


def test_an_imported_checkpoint_is_a_model_that_samples(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    out = import_model(str(checkpoint), tmp_path / "model", str(vae))
    model = ditlab.load(out)
    assert torch.equal(output(model.network), output(network()))
    assert model.pixels == (3, 32, 32)
    assert model.classes == 10
    assert (model.diffusion.schedule, model.diffusion.target) == ("linear-beta", "epsilon")
    assert model.diffusion.learned_variance
    assert model.autoencoder.std.flatten().tolist() == [2.0] * 4  # latents are multiplied by 0.5
    images = model.sample(labels=[3, 7], guidance=1.5, steps=3, seed=0)
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.std() > 1
    assert not (out / "DiT.pt").exists()


def test_a_model_that_is_there_is_kept_unless_forced(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    out = import_model(str(checkpoint), tmp_path / "model", str(vae))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match="--force") as caught:
        import_model(str(checkpoint), out, str(vae))
    assert str(out) in str(caught.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    torch.save(official.state_dict(network(depth=1)), checkpoint)
    import_model(str(checkpoint), out, str(vae), force=True)
    assert len(ditlab.load(out).network.block_list()) == 1


def test_a_vae_of_other_channels_or_none_leaves_nothing_behind(checkpoint: Path, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load an autoencoder"):
        import_model(str(checkpoint), tmp_path / "model", str(tmp_path / "no vae"))
    three = network(shape=image_spec(3, 8, 8, classes=10))
    torch.save(official.state_dict(three), checkpoint)
    with pytest.raises(UserError, match="4 latent channels, the checkpoint 3"):
        import_model(str(checkpoint), tmp_path / "model", str(vae))
    assert not (tmp_path / "model").exists()


def test_the_command_says_what_it_guessed_and_samples_a_sit(ditlab: Any, vae: Path, tmp_path: Path) -> None:
    from public_networks import checkpoint

    settings = argparse.Namespace(num_classes=10, path_type="Linear", prediction="velocity")
    tensors = {f"module.{name}": tensor for name, tensor in checkpoint(width=96, heads=3).items()}
    torch.save({"model": tensors, "args": settings}, tmp_path / "sit.pt")
    ended = ditlab("import", tmp_path / "sit.pt", tmp_path / "model", "--vae", vae)
    assert ended.code == 0, ended
    for words in ("weights: model, no moving average", "heads: 2, guessed", "classes: 10", "process: SiT's"):
        assert words in ended.out
    ended = ditlab("import", tmp_path / "sit.pt", tmp_path / "model", "--vae", vae, "--heads", 3, "--force")
    assert "guessed" not in ended.out
    ended = ditlab(
        "sample", tmp_path / "model", "--count", 2, "--steps", 2, "--guidance", 2, "--out", tmp_path / "a.png"
    )
    assert ended.code == 0, ended


def test_the_command_imports_and_says_where(
    checkpoint: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    main(["import", str(checkpoint), str(out), "--vae", str(vae)])
    assert str(out) in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["import", str(checkpoint), str(out), "--vae", str(vae)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "--force" in lines[0]
