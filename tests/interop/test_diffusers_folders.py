"""Folders as diffusers writes them: variants, shards, the transformer alone, and what is refused by its cause."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import ditlab
from ditlab.interop import diffusers_pipeline
from ditlab.interop.importing import import_model
from ditlab.models import Condition, Network

Refuses = Callable[..., str]
CLASSES = 1000


def transformer(shared: bool = True, layers: int = 2) -> Any:
    """A DiTTransformer2DModel no weight of which is zero; its blocks share their embeddings, or do not."""
    torch.manual_seed(0)
    made: Any = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=layers, sample_size=4,
        norm_eps=1e-6,
    )  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.08)
    if shared:
        first = made.transformer_blocks[0].norm1.emb
        for block in made.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())
    return made.eval()


def vae() -> Any:
    torch.manual_seed(0)
    build: Any = diffusers.AutoencoderKL
    return build(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a DiTPipeline with ImageNet's kind of names. Tests copy it."""
    folder = tmp_path_factory.mktemp("diffusers") / "pipeline"
    scheduler: Any = diffusers.DDIMScheduler(beta_end=0.02, beta_start=1e-4, clip_sample=False)
    diffusers.DiTPipeline(transformer(), vae(), scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())  # save_pretrained forgets the names
    labels = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "crane", "3": "crane"}
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": labels}))
    return folder


@pytest.fixture
def copy(pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipeline, tmp_path / "pipeline"))


def outputs(network: Network, theirs: Any, steps: int = 50) -> tuple[Tensor, Tensor]:
    """What both networks predict at timesteps that a sampling of so many steps has."""
    x = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    t, labels = torch.arange(0, 1000, 1000 // steps)[[0, 3, 7, -1]], torch.tensor([0, 1, 2, CLASSES])
    ours = torch.where(labels < network.spec.classes, labels, -1)
    with torch.no_grad():
        return network(x, t, Condition.of_labels(ours)), theirs(x, t, labels, return_dict=False)[0]


def test_embeddings_of_each_block_are_read_as_they_are(tmp_path: Path):
    theirs = transformer(shared=False, layers=3)
    theirs.save_pretrained(tmp_path)
    network = diffusers_pipeline.read_transformer(tmp_path).network
    assert network.config.block_embeddings
    found, expected = outputs(network, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    other = diffusers_pipeline.read_transformer(_saved(transformer(layers=3), tmp_path / "shared")).network
    assert not other.config.block_embeddings


def _saved(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"max_shard_size": "100KB"},
        {"variant": "fp16", "max_shard_size": "100KB"},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": "100KB"},
    ],
    ids=["fp16", "shards", "fp16 shards", "bin", "bin shards"],
)
def test_every_way_of_storing_a_pipeline_is_read(options: dict[str, Any], copy: Path):
    before = diffusers_pipeline.read(copy)
    for name, each in (("transformer", transformer()), ("vae", vae())):
        shutil.rmtree(copy / name)
        _saved(each.half() if "variant" in options else each, copy / name, **options)
    names = {path.name for path in (copy / "transformer").iterdir()}
    assert "diffusion_pytorch_model.safetensors" not in names
    assert ("max_shard_size" in options) == (len(names) > 2)
    after = diffusers_pipeline.read(copy)
    assert {parameter.dtype for module in (after.network, after.autoencoder) for parameter in module.parameters()} == {
        torch.float32
    }
    tolerance = 0.02 if "variant" in options else 0.0
    for first, second in ((before.network, after.network), (before.autoencoder, after.autoencoder)):
        for name, tensor in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)


def test_full_precision_is_preferred_and_a_missing_shard_is_named(tmp_path: Path, refuses: Refuses):
    folder = tmp_path / "t"
    _saved(transformer(), folder, max_shard_size="100KB")
    shard = sorted(folder.glob("*-of-*"))[0]
    kept = shard.read_bytes()
    shard.unlink()
    refuses(lambda: diffusers_pipeline.read_transformer(folder), shard.name, "missing")
    shard.write_bytes(kept)
    _saved(transformer().half(), folder, variant="fp16")
    found = diffusers_pipeline.read_transformer(folder).network
    rounded = {name: tensor.half().float() for name, tensor in found.state_dict().items()}
    assert any(not torch.equal(tensor, rounded[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_transformer_alone_is_imported_with_a_vae(what: str, pipeline: Path, tmp_path: Path, refuses: Refuses):
    source = pipeline / "transformer"
    given = source / "diffusion_pytorch_model.safetensors" if what == "file" else source
    lines: list[str] = []
    out = import_model(str(given), tmp_path / "model", str(pipeline / "vae"), log=lines.append)
    found, expected = outputs(ditlab.load(out).network, transformer())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    refuses(lambda: ditlab.load(given), "ditlab import")
    lone = tmp_path / "lone.safetensors"
    shutil.copyfile(source / "diffusion_pytorch_model.safetensors", lone)
    refuses(lambda: import_model(str(lone), tmp_path / "other", str(pipeline / "vae")), "config.json", "missing")


def test_a_pipeline_is_imported_with_its_names(pipeline: Path, tmp_path: Path, refuses: Refuses):
    model = ditlab.load(import_model(str(pipeline), tmp_path / "model"))
    assert model.classes == 4
    assert [model.label(name) for name in ("tench", "Tinca Tinca", "tench, Tinca tinca", "goldfish")] == [0, 0, 0, 1]
    refuses(lambda: model.label("crane"), "2 (crane), 3 (crane)")


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("transformer/config.json", {"num_layers": 3}, ["3 layers", "weights have 2"]),
        ("transformer/config.json", {"_class_name": "PixArtTransformer2DModel"}, ["PixArtTransformer2DModel"]),
        ("transformer/config.json", {"norm_type": "ada_norm_single"}, ["norm_type ada_norm_single"]),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, ["StableDiffusion3Pipeline"]),
    ],
)
def test_the_cause_of_a_refusal_is_named(file: str, change: dict, words: list[str], copy: Path, refuses: Refuses):
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refuses(lambda: diffusers_pipeline.read(copy), *words)


def test_a_missing_tensor_or_no_weights_are_named(copy: Path, refuses: Refuses):
    from safetensors.torch import load_file, save_file

    path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    name = "transformer_blocks.1.attn1.to_k.bias"
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    refuses(lambda: diffusers_pipeline.read(copy), "lack", name)
    path.unlink()
    refuses(lambda: diffusers_pipeline.read(copy), "no file of weights", "config.json")


def test_folders_of_trainers_are_imported(pipeline: Path, tmp_path: Path, refuses: Refuses):
    from public_networks import checkpoint
    from safetensors.torch import save_file

    folder = tmp_path / "accelerate"
    folder.mkdir()
    refuses(lambda: import_model(str(folder), tmp_path / "model"), "no file of weights", "empty")
    save_file(checkpoint(), folder / "model.safetensors")
    torch.save({"state": {}}, folder / "optimizer.bin")
    out = import_model(str(folder), tmp_path / "model", str(pipeline / "vae"))
    assert ditlab.load(out).classes == 10
    (tmp_path / "fsdp").mkdir()
    (tmp_path / "fsdp" / "__0_0.distcp").touch()
    refuses(lambda: import_model(str(tmp_path / "fsdp"), tmp_path / "x"), "dcp_to_torch")


def test_a_network_of_pixels_has_no_vae(tmp_path: Path, pipeline: Path, refuses: Refuses):
    from public_networks import checkpoint

    torch.save(checkpoint(channels=1), tmp_path / "mnist.pt")
    model = ditlab.load(import_model(str(tmp_path / "mnist.pt"), tmp_path / "model", "pixels"))
    assert model.pixels == (1, 8, 8)
    assert model.sample(steps=2, count=2).shape == (2, 8, 8, 1)
    refuses(
        lambda: import_model(str(tmp_path / "mnist.pt"), tmp_path / "more", str(pipeline / "vae")), "1", "--vae pixels"
    )
