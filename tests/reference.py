"""Reference runs: small seeded cases of training and sampling, and their numbers, to be kept by any rewrite.

python -m tests.reference --record FILE.npz    write every tensor of every case
python -m tests.reference --compare FILE.npz   compare every tensor with those; exit 1 where one differs by more than 1e-6
python -m tests.reference --write              write tests/reference.json, a few numbers a tensor, for test_reference.py

Only the functions of the first part call the package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from ditlab.data import DataConfig, Images
from ditlab.diffusion import (
    ClassifierFreeGuidance,
    Denoiser,
    DiffusionConfig,
    GuidanceConfig,
    Positions,
    State,
    Trajectory,
    sample,
)
from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.models import (
    Condition,
    DiTConfig,
    LatentSpec,
    Network,
    NetworkConfig,
    UNetConfig,
    build,
    labelled,
)
from ditlab.pipelines import Pipeline, SampleConfig
from ditlab.recipes import Recipe
from ditlab.recipes.prepare import RunContext, pixel_autoencoder
from ditlab.recipes.run import build_model, train_recipe
from ditlab.train import (
    AutoencoderFile,
    AutoencoderTask,
    Callback,
    DiffusionTask,
    ModelFile,
    Reconstructions,
    SampleGrid,
    TrainConfig,
    read_metrics,
    train,
)

Tensors = dict[str, Tensor]
Case = Callable[[], Tensors]

JSON = Path(__file__).with_suffix(".json")
SPREAD = 8  # entries kept of a large tensor
LARGEST = 1e-6  # difference that --compare lets pass, relative to a tensor's largest magnitude
CPU = torch.device("cpu")


# The package's side: what a rewrite has to adapt.


def random_images(channels: int = 3, count: int = 64) -> Images:
    """Seeded noise of 8x8 pixels in four classes, brighter from class to class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 128, (count, channels, 8, 8), generator=generator) + 40 * labels.view(-1, 1, 1, 1)
    return Images(pixels.to(torch.uint8).numpy(), labels.numpy(), ("a", "b", "c", "d"), "reference", ())


def short_training(batch: int, steps: int = 20, every: int = 1, rate: float = 3e-3) -> TrainConfig:
    """``steps`` steps, a row of metrics every ``every`` of them."""
    total = batch * steps
    return TrainConfig(
        images=total, batch=batch, lr=rate, beta2=0.99, weight_decay=0.01, warmup=0.1, cooldown=0.4, ema=0.9, max_grad_norm=5.0,
        precision="fp32", microbatch=batch, log=batch * every, checkpoint=total, samples=total,
    )  # fmt: skip


def run_training(task: AutoencoderTask | DiffusionTask, folder: Path, *callbacks: Callback) -> Tensors:
    """20 steps of 8 images into a folder; the loss of each, and PSNR where it is measured."""
    config = short_training(8)
    train(
        task,
        config,
        seed=0,
        flip=True,
        folder=folder,
        device=CPU,
        log=lambda _: None,
        title="reference",
        callbacks=callbacks,
    )
    return rows_of(folder)


def rows_of(folder: Path) -> Tensors:
    """The numbers of a run's metrics."""
    rows = read_metrics(folder)
    found = {"losses": torch.tensor([row["loss"] for row in rows])}
    psnr = [row["psnr"] for row in rows if "psnr" in row]
    return found | ({"psnr": torch.tensor(psnr)} if psnr else {})


def sampled(model: Pipeline, config: SampleConfig, count: int = 4) -> Tensors:
    """``count`` images of seed 3: the final x, the data expected at every step, and the pixels."""
    states = list(model.states(model.condition(None, count), 3, 0, config))
    pixels = model.sample(
        guidance=config.guidance, steps=config.steps, sampler=config.sampler, precision="fp32", seed=3, count=count
    )
    return {**tensors_of(states), "pixels": torch.from_numpy(pixels).float()}


def tensors_of(states: list[State]) -> Tensors:
    """The final x, and the data expected at every step."""
    return {"x": states[-1].x_s, "x0": torch.stack([state.x0 for state in states])}


def trained_diffusion(network: NetworkConfig, diffusion: DiffusionConfig, config: SampleConfig) -> Tensors:
    """Losses of 20 steps on random images, and samples of the average after them."""
    data = random_images()
    autoencoder = pixel_autoencoder(data)
    model = build_model(Recipe(model=network, diffusion=diffusion, sample=config), autoencoder, data.shape, data.names)
    task = DiffusionTask(model.network, diffusion.build_loss(), autoencoder, data)
    with tempfile.TemporaryDirectory() as folder:
        losses = run_training(task, Path(folder), SampleGrid(model, 4, 0), ModelFile(model))
        averaged = Pipeline.load(folder)
        return {**losses, "output": told(averaged.network), **sampled(averaged, config)}


def trained_autoencoder() -> Tensors:
    """Losses of 20 steps of a KL autoencoder on random images, its PSNR, and what it then says of them."""
    data = random_images()
    config = AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), kl_weight=1e-3)
    autoencoder = new_kl(config, data.shape[0], 0)
    few = Images(data.pixels[:16], data.labels[:16], data.names, data.fingerprint, ())
    with tempfile.TemporaryDirectory() as folder:
        task = AutoencoderTask(autoencoder, data, config.kl_weight)
        losses = run_training(task, Path(folder), Reconstructions(few), AutoencoderFile(data))
    pixels = torch.from_numpy(few.pixels).float() / 127.5 - 1
    with torch.no_grad():
        moments = autoencoder.encode(pixels)
        decoded = autoencoder.decode_raw(autoencoder.raw_latent(moments, normal(moments[:, :2].shape, 2)))
    return {**losses, "moments": moments, "decoded": decoded}


def trained_recipe(latents: bool) -> Tensors:
    """A recipe from its images to its samples, on pixels, or on latents of an autoencoder of its own."""
    kl = AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 16), kl_weight=1e-3)
    recipe = Recipe(
        name="reference",
        data=DataConfig(source="digits", limit=200, flip=True),
        autoencoder=kl if latents else AutoencoderConfig(),
        autoencoder_train=short_training(16, every=4),
        model=DiTConfig(depth=1, width=16, heads=2, patch=2),
        diffusion=DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False),
        train=short_training(16, every=4),
        sample=SampleConfig(sampler="heun", steps=3, guidance=GuidanceConfig(scale=1.5), precision="fp32"),
        sample_images=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        place = RunContext(Path(folder) / "run", CPU, lambda _: None)
        model = train_recipe(recipe, place)
        found = {**rows_of(place.out), **sampled(model, recipe.sample)}
        if latents:
            found |= {f"autoencoder-{name}": value for name, value in rows_of(place.sibling("autoencoder")).items()}
        return {**found, "mean": model.autoencoder.mean.clone(), "std": model.autoencoder.std.clone()}


def fixed_network(config: NetworkConfig, learned_variance: bool) -> Network:
    """A network for 3x8x8 latents of four classes, drawn from a seed; what is zero at first is drawn too.

    Labels are drawn anew as well: as a DiT begins, they change next to nothing, and neither would guidance.
    """
    spec = labelled(LatentSpec(3, (8, 8)), 4, learned_variance=learned_variance)
    network = build(config, spec).initialise(torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        network.get_parameter("condition_embedding.labels.table.weight").normal_(generator=generator)
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def told(network: nn.Module) -> Tensor:
    """What a network says of four fixed latents 3x8x8, one of them without a label."""
    with torch.no_grad():
        t = torch.tensor([0.0, 10.0, 500.0, 999.0])
        return network(normal((4, 3, 8, 8), 6), t, Condition.of_labels(torch.tensor([0, 3, -1, 1])))


def output_of(config: NetworkConfig) -> Tensors:
    """What a network with fixed weights, none of them zero, says."""
    return {"output": told(fixed_network(config, learned_variance=True))}


def losses_of(diffusion: DiffusionConfig) -> Tensors:
    """What chance decides for eight latents, their losses under a fixed network, and the gradient's norm."""
    network, loss = fixed_network(SMALL, diffusion.learned_variance), diffusion.build_loss()
    draws = loss.draw(Positions(7, 0, 8), (3, 8, 8))
    x0 = normal((8, 3, 8, 8), 8).mul(0.5).clamp(-1, 1)
    losses = loss(network, x0, Condition.of_labels(torch.arange(8) % 4), draws)
    losses.mean().backward()
    norms = [parameter.grad.norm() for parameter in network.parameters() if parameter.grad is not None]
    return {"times": draws["t"].float(), "losses": losses.detach(), "gradient": torch.stack(norms).norm()}


def steps_of(sampler: str, diffusion: DiffusionConfig) -> Tensors:
    """Five steps of a sampler from fixed noise under a fixed network: plain, guided in an interval, on two channels."""
    network, schedule = fixed_network(SMALL, diffusion.learned_variance), diffusion.build_schedule()
    denoiser = Denoiser(network, schedule, diffusion.target, diffusion.learned_variance)
    guidances = {
        "plain": GuidanceConfig(),
        "interval": GuidanceConfig(scale=2.0, low=0.2, high=0.8),
        "channels": GuidanceConfig(scale=2.0, channels=2),
    }
    found: Tensors = {}
    for name, guidance in guidances.items():
        generator = torch.Generator().manual_seed(9)
        noise = partial(torch.randn, 2, 3, 8, 8, generator=generator)
        classifier_free, condition = ClassifierFreeGuidance(guidance), Condition.of_labels(torch.tensor([0, 2]))
        with torch.no_grad():
            trajectory = Trajectory(sampler, schedule, 5, classifier_free, condition, noise(), noise)
            states = list(sample(trajectory, denoiser))
        found |= {f"{name}-{key}": value for key, value in tensors_of(states).items()}
    return found


def interpolated() -> Tensors:
    """Three images between two of other seeds and labels."""
    data, config = random_images(), SampleConfig("heun", 3, GuidanceConfig(scale=1.5), "fp32")
    diffusion = DiffusionConfig(**FLOW)
    recipe = Recipe(model=SMALL, diffusion=diffusion, sample=config)
    model = build_model(recipe, pixel_autoencoder(data), data.shape, data.names)
    model.network.load_state_dict(fixed_network(SMALL, learned_variance=False).state_dict())
    return tensors_of(list(model.run(model.interpolation((0, 0), (1, 2), 3, config), config)))


FLOW: dict[str, Any] = {"schedule": "rectified-flow", "target": "velocity", "learned_variance": False}
FASTER: dict[str, Any] = {**FLOW, "times": "logit-normal", "direction": True}
PROCESSES: dict[str, DiffusionConfig] = {
    "linear-beta-epsilon": DiffusionConfig(),
    "linear-beta-v": DiffusionConfig(target="v", learned_variance=False),
    "rectified-flow-velocity": DiffusionConfig(**FLOW),
    "rectified-flow-v": DiffusionConfig(**{**FLOW, "target": "v"}),
}
MORE_PROCESSES: dict[str, DiffusionConfig] = {
    "linear-beta-epsilon-fixed-variance": DiffusionConfig(learned_variance=False),
    "linear-beta-x0": DiffusionConfig(target="x0", learned_variance=False),
    "linear-beta-velocity": DiffusionConfig(target="velocity", learned_variance=False),
    "rectified-flow-x0": DiffusionConfig(**{**FLOW, "target": "x0"}),
    "rectified-flow-faster": DiffusionConfig(**FASTER),
}
SMALL = DiTConfig(depth=1, width=16, heads=2, patch=2)
BLOCKS = ("adaln-zero", "adaln", "cross-attention", "in-context")
NETWORKS: dict[str, NetworkConfig] = {
    **{f"dit-{block}": DiTConfig(depth=2, width=32, heads=2, patch=2, block=block) for block in BLOCKS},
    "dit-options": DiTConfig(
        depth=2, width=32, heads=2, patch=2, mlp="swiglu", norm="rms", positions="rotary", qk_norm=True, modulation_rank=8
    ),
    "dit-options-in-context": DiTConfig(
        depth=2, width=32, heads=2, patch=2, block="in-context", mlp="swiglu", norm="rms", positions="rotary", qk_norm=True
    ),
    "unet-adm": UNetConfig(width=16, multipliers=(1.0, 2.0), blocks=1, attention=(2,), head_width=16),
    "unet-ldm": UNetConfig(width=16, multipliers=(1.0, 2.0), blocks=1, attention=(2,), head_width=16, design="ldm"),
}  # fmt: skip
ANCESTRAL = SampleConfig("ddpm", 5, GuidanceConfig(scale=1.5), "fp32")
SAMPLERS = ("ddpm", "ddim", "euler", "heun", "dpm-solver")


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, network in NETWORKS.items():
        options = name.startswith("dit-options")
        diffusion = DiffusionConfig(**FASTER) if options else DiffusionConfig()
        config = SampleConfig("dpm-solver", 5, GuidanceConfig(scale=1.5), "fp32") if options else ANCESTRAL
        cases[f"train-{name}"] = partial(trained_diffusion, network, diffusion, config)
        cases[f"output-{name}"] = partial(output_of, network)
    cases["train-autoencoder"] = trained_autoencoder
    cases["recipe-pixels"] = partial(trained_recipe, latents=False)
    cases["recipe-latents"] = partial(trained_recipe, latents=True)
    for name, diffusion in (PROCESSES | MORE_PROCESSES).items():
        cases[f"losses-{name}"] = partial(losses_of, diffusion)
    for name, diffusion in PROCESSES.items():
        for sampler in SAMPLERS:
            cases[f"{sampler}-{name}"] = partial(steps_of, sampler, diffusion)
    for name, diffusion in MORE_PROCESSES.items():
        if name != "rectified-flow-faster":  # differs in its loss only
            cases[f"ddpm-{name}"] = partial(steps_of, "ddpm", diffusion)
    cases["interpolation"] = interpolated
    return cases


CASES = _cases()


# The recorder.


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal draws of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compute(name: str) -> Tensors:
    """The tensors of a case, float32, computed by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = CASES[name]()
    finally:
        torch.set_num_threads(threads)
    return {key: value.detach().float().contiguous() for key, value in found.items()}


def summary(tensor: Tensor) -> dict[str, list[float]]:
    """A few numbers of a tensor, to 7 digits: all where it is a short row, else moments and evenly spaced entries."""
    flat = tensor.flatten().double()
    if tensor.ndim < 2:
        return {"values": _rounded(flat)}
    places = torch.linspace(0, flat.numel() - 1, SPREAD, dtype=torch.float64).round().long()
    moments = torch.stack([flat.mean(), flat.std(correction=0)])
    return {"shape": list(tensor.shape), "moments": _rounded(moments), "entries": _rounded(flat[places])}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


def write() -> None:
    """Write the summary of every case, a line each."""
    lines = []
    for name in CASES:
        found = {key: summary(tensor) for key, tensor in compute(name).items()}
        lines.append(f"{json.dumps(name)}: {json.dumps(found, separators=(',', ':'))}")
    JSON.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record(path: Path) -> None:
    """Write every tensor of every case."""
    arrays: dict[str, Any] = {}
    for name in CASES:
        began = time.perf_counter()
        arrays |= {f"{name}/{key}": tensor.numpy() for key, tensor in compute(name).items()}
        print(f"{name}: {time.perf_counter() - began:.2f} s")
    np.savez(path, **arrays)


def difference(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """The largest difference, and the same over the largest magnitude of the old one; infinite where they do not compare."""
    if old.shape != new.shape or not (np.isfinite(old).all() and np.isfinite(new).all()):
        return float("inf"), float("inf")
    largest = float(np.abs(new.astype(np.float64) - old.astype(np.float64)).max(initial=0))
    return largest, largest / max(float(np.abs(old).max(initial=0)), 1e-30)


def compare(path: Path) -> bool:
    """Print how every case differs from the recorded one; gives whether all are near enough."""
    with np.load(path) as opened:
        recorded = {name: opened[name] for name in opened.files}
    good = True
    for name in CASES:
        new = {f"{name}/{key}": tensor.numpy() for key, tensor in compute(name).items()}
        keys = new.keys() | {key for key in recorded if key.startswith(f"{name}/")}
        absent = sorted(key for key in keys if key not in new or key not in recorded)
        if absent:
            good = False
            print(f"{name}: not in both: {', '.join(absent)}")
        both = sorted(keys - set(absent))
        if any(recorded[key].tobytes() != new[key].tobytes() or recorded[key].shape != new[key].shape for key in both):
            found = {key: difference(recorded[key], new[key]) for key in both}
            worst = max(both, key=lambda key: found[key][1])
            good = good and found[worst][1] <= LARGEST
            print(f"{name}: absolute {max(d for d, _ in found.values()):.3g}, relative {found[worst][1]:.3g} ({worst})")
        elif not absent:
            print(f"{name}: equal to the bit")
    gone = sorted({key.split("/")[0] for key in recorded} - CASES.keys())
    if gone:
        print(f"recorded, but no cases now: {', '.join(gone)}")
    return good and not gone


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description="Reference runs.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--record", type=Path, metavar="FILE.npz", help="write every tensor")
    group.add_argument("--compare", type=Path, metavar="FILE.npz", help="compare with what was written")
    group.add_argument("--write", action="store_true", help=f"write {JSON.name}")
    given = parser.parse_args()
    if given.compare:
        return 0 if compare(given.compare) else 1
    if given.record:
        record(given.record)
    else:
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
