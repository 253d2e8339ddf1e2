"""What the loop trains, on real digits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from specs import image_spec
from torch import Tensor

from ditlab.data import DataConfig, DataOrder, open_data
from ditlab.diffusion import DiffusionConfig, Positions
from ditlab.encoders import Autoencoder, AutoencoderConfig, new_kl, record, uint8_to_float
from ditlab.errors import UserError
from ditlab.models import Condition, DiT, DiTConfig
from ditlab.pipelines import Pipeline
from ditlab.train import AutoencoderTask, DiffusionTask, read_metrics

FLOW = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False, times="logit-normal")


def pixels() -> Tensor:
    """Digits as scikit-learn has them, 0 to 16, brought to bytes and to [-1, 1]: float64 (1797, 1, 8, 8)."""
    levels = np.rint(load_digits().images * 255 / 16)  # type: ignore[attr-defined]
    return torch.from_numpy(levels / 127.5 - 1)[:, None]


def test_a_run_of_the_recipe_is_a_plain_flow_matching_loop_over_scikit_learns_digits(digits_run: Path):
    x = pixels()
    mean, std = x.mean(), x.std(correction=0)
    latents, labels = ((x - mean) / std).float(), torch.from_numpy(load_digits().target)  # type: ignore[attr-defined]
    shape = image_spec(channels=1, height=8, width=8, classes=10)
    network = DiT(DiTConfig(depth=2, width=32, heads=2, patch=2), shape).initialise(torch.Generator().manual_seed(0))
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    order, loss = DataOrder(1797, 0), FLOW.build_loss()
    for step in range(20):
        draws = loss.draw(Positions(0, 32 * step, 32), (1, 8, 8))
        indices, _ = order.batch(32 * step, 32)
        x0, epsilon, t = latents[indices], draws["epsilon"], draws["t"][:, None, None, None]
        told = torch.where(draws["drop"], -1, labels[indices])
        velocity = network((1 - t) * x0 + t * epsilon, 1000 * draws["t"], Condition.of_labels(told))
        optimiser.zero_grad()
        (velocity - (epsilon - x0)).square().mean().backward()
        optimiser.param_groups[0]["lr"] = 6e-3 * min(1, (20 - step) / 10)
        optimiser.step()
        decay = min(0.998, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * value
    saved = safetensors.torch.load_file(digits_run / "model.safetensors")
    assert float(saved["autoencoder.mean"]) == pytest.approx(float(mean), abs=1e-6)
    assert float(saved["autoencoder.std"]) == pytest.approx(float(std), abs=1e-5)
    assert {name.removeprefix("network.") for name in saved if name.startswith("network.")} == set(average)
    start = DiT(network.config, shape).initialise(torch.Generator().manual_seed(0)).state_dict()
    moved = max(float((average[name] - start[name]).abs().max()) for name in average)
    assert moved > 1e-2  # far more than what is allowed below
    for name, value in average.items():
        torch.testing.assert_close(saved[f"network.{name}"], value, rtol=0, atol=1e-3)


def test_the_trained_model_file_is_the_average_and_says_what_it_saw(digits_run: Path):
    model = Pipeline.load(digits_run)
    assert model.facts["images"] == 640
    assert model.names == tuple("0123456789")
    assert model.defaults.sampler == "heun"
    assert json.loads((digits_run / "model.json").read_text())["autoencoder"]["kind"] == "pixels"


def test_sample_pictures_are_drawn_on_the_way_and_shown_in_the_report(digits_run: Path):
    with Image.open(digits_run / "samples" / "000000000640.png") as picture:
        assert min(picture.size) > 2 * 64
    report = (digits_run / "report.md").read_text()
    assert "(samples/000000000640.png)" in report
    assert "(loss.png)" in report
    assert "| images trained on | 640 |" in report
    with Image.open(digits_run / "loss.png") as curve:
        assert curve.size[0] > 500
    rows = read_metrics(digits_run)
    assert [row["images"] for row in rows] == [160, 320, 480, 640]
    assert all(len(row["loss_by_time"]) == 10 and row["images_per_second"] > 0 for row in rows)
    counted = f"{np.mean([row['loss'] for row in rows]):.4f}"
    assert f"| loss, last 4 rows | {counted} |" in report


def test_labels_the_network_does_not_know_are_refused():
    images = open_data(DataConfig(source="digits", limit=50)).load()
    network = DiT(DiTConfig(depth=1, width=16, heads=2), image_spec(1, 8, 8, classes=5))
    with pytest.raises(UserError, match="label 9 in the data is out of range: the network has 5 classes"):
        DiffusionTask(network, FLOW.build_loss(), Autoencoder(1, 1, 1), images)


def test_training_the_autoencoder_gives_images_back_ever_better(kl_run: Path):
    folder = kl_run.with_name("small-autoencoder")
    psnr = [row["psnr"] for row in read_metrics(folder) if "psnr" in row]
    assert len(psnr) == 2
    images = open_data(DataConfig(source="digits", limit=600)).load()
    truth = images.pixels.astype(np.float64)
    grey = 10 * np.log10(255**2 / np.square(truth - truth.mean(axis=0).round()).mean())
    assert psnr[0] > grey + 1  # better than the mean image
    assert psnr[1] > psnr[0] + 0.5
    autoencoder = record.load(folder)
    with torch.no_grad():
        means = autoencoder.encode(uint8_to_float(images.pixels)).chunk(2, dim=1)[0]
        decoded = autoencoder.decode_raw(means).double().numpy()
    levels = np.clip(np.rint((decoded + 1) * 127.5), 0, 255)
    assert psnr[1] == pytest.approx(10 * np.log10(255**2 / np.square(levels - truth).mean()), abs=1e-3)
    assert f"| PSNR, last | {psnr[1]:.2f} dB |" in (folder / "report.md").read_text()
    assert "600 training images, since none are held out (" in (folder / "report.md").read_text()


def test_latents_have_zero_mean_and_unit_variance_in_every_channel(kl_run: Path):
    autoencoder = record.load(kl_run.with_name("small-autoencoder"))
    images = open_data(DataConfig(source="digits", limit=600)).load()
    with torch.no_grad():
        moments = autoencoder.encode(uint8_to_float(images.pixels))
        noise = torch.randn(600, 2, 4, 4, generator=torch.Generator().manual_seed(9))
        latents = autoencoder.latent(moments, noise).double()
        raw = autoencoder.raw_latent(moments, noise).double()
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    assert (raw.std(dim=(0, 2, 3)) - 1).abs().max() > 0.1  # so that there was something to normalise


def test_the_autoencoders_loss_is_squared_error_and_divergence_as_torch_has_it():
    images = open_data(DataConfig(source="digits", limit=8)).load()
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16)), 1, seed=0)
    task = AutoencoderTask(autoencoder, images, kl_weight=0.3)
    batch = task.read(np.arange(8), np.zeros(8, bool), {})
    draws = task.draw(Positions(0, 0, 8))
    with torch.no_grad():
        losses = task.loss(autoencoder, batch, draws)
        mean, log_variance = autoencoder.encode(uint8_to_float(batch["pixels"])).chunk(2, dim=1)
        normal = torch.distributions.Normal(mean.double(), (0.5 * log_variance.double()).exp())
        standard = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
        divergence = torch.distributions.kl_divergence(normal, standard).sum(dim=(1, 2, 3))
        raw = mean + (0.5 * log_variance).exp() * draws["posterior"]
        squared = (autoencoder.decode_raw(raw) - uint8_to_float(batch["pixels"])).double().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.double(), squared + 0.3 * divergence / 64, rtol=1e-5, atol=1e-6)
