import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ditlab.encoders import AUTOENCODERS, Autoencoder, AutoencoderConfig, new_kl, record


@pytest.fixture
def folder(kl: Callable, tmp_path: Path) -> Path:
    autoencoder = kl(seed=1)
    autoencoder.set_statistics(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]))
    record.save(autoencoder, tmp_path)
    return tmp_path


def test_a_saved_autoencoder_comes_back_with_its_statistics(kl: Callable, folder: Path):
    assert sorted(path.name for path in folder.iterdir()) == ["autoencoder.json", "autoencoder.safetensors"]
    before = torch.random.get_rng_state()
    back = record.load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert back.fingerprint() == kl(seed=1).fingerprint()
    assert back.mean.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert back.std.flatten().tolist() == pytest.approx([0.3, 0.4])
    pixels = torch.rand(2, 1, 6, 4)
    assert torch.equal(back.encode(pixels), kl(seed=1).encode(pixels))
    assert not back.training


def test_the_pixel_identity_is_saved_too(tmp_path: Path):
    autoencoder = Autoencoder(3, 3, 1)
    autoencoder.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    record.save(autoencoder, tmp_path)
    back = record.load(tmp_path)
    assert (type(back), back.channels, back.mean.flatten().tolist()) == (Autoencoder, 3, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_every_kind_of_the_registry_is_built_and_restored_from_its_record(kind: str, folder: Path, kl: Callable):
    (folder / "vae").mkdir()
    kl(channels=3).vae.save_pretrained(folder / "vae")
    sizes: dict[str, Any] = {"latent_channels": 2, "widths": (8, 16), "time_factor": 2}
    config = AutoencoderConfig(kind=kind, path=str(folder / "vae"), **sizes)  # pyright: ignore
    built = AUTOENCODERS[kind].build(config, 3, 0)
    again = record.restore(json.loads(json.dumps(built.record())))
    assert (again.channels, again.factor, again.architecture()) == (3, built.factor, built.architecture())
    assert AUTOENCODERS[kind].latents == (built.factor > 1)
    assert not (AUTOENCODERS[kind].trained and not built.shipped)


def test_nothing_there_says_how_to_make_one(tmp_path: Path, refuses: Callable):
    refuses(lambda: record.load(tmp_path), str(tmp_path), "ditlab autoencoder")
    refuses(lambda: record.load(tmp_path / "none"), "none", "ditlab autoencoder")


@pytest.mark.parametrize("name", [record.RECORD, record.WEIGHTS])
@pytest.mark.parametrize("keep", [0, 30])
def test_truncated_files_are_one_line(folder: Path, refuses: Callable, name: str, keep: int):
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    refuses(lambda: record.load(folder), str(folder), "cannot be read")


@pytest.mark.parametrize("value", [[], 3, {"kind": "pixels"}, {"kind": "pixels", "channels": "many"}, {"kind": "kl"}])
def test_a_record_without_its_fields_is_one_line(folder: Path, refuses: Callable, value: object):
    (folder / record.RECORD).write_text(json.dumps(value))
    refuses(lambda: record.load(folder), "record")


def test_an_unknown_kind_names_the_nearest(folder: Path, refuses: Callable):
    (folder / record.RECORD).write_text(json.dumps({"kind": "pixel"}))
    refuses(lambda: record.load(folder), "'pixel'", "'pixels'")


def test_weights_of_another_architecture_name_the_tensor(kl: Callable, folder: Path, refuses: Callable):
    record.save(kl(config=AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 24))), folder / "wider")
    (folder / "wider" / record.WEIGHTS).replace(folder / record.WEIGHTS)
    message = refuses(lambda: record.load(folder), "another architecture", "is expected")
    name = message.split("'")[1]
    assert name in new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16)), 1, 0).state_dict()


def test_missing_and_unknown_tensors_are_named(folder: Path, refuses: Callable):
    weights = safetensors.torch.load((folder / record.WEIGHTS).read_bytes())
    mean = weights.pop("mean")
    (folder / record.WEIGHTS).write_bytes(safetensors.torch.save(weights))
    refuses(lambda: record.load(folder), "another architecture", "lacks", "'mean'")
    (folder / record.WEIGHTS).write_bytes(safetensors.torch.save({**weights, "mean": mean, "surplus": mean.clone()}))
    refuses(lambda: record.load(folder), "another architecture", "unknown", "'surplus'")
