import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ditlab.diffusion import SAMPLERS, DiffusionConfig, GuidanceConfig
from ditlab.encoders import AutoencoderConfig, new_kl
from ditlab.errors import UserError
from ditlab.models import Condition, DiTConfig
from ditlab.models.blocks import PAPER_BLOCKS
from ditlab.pipelines import Pipeline, SampleConfig, image_generators

LEARNED = DiffusionConfig()  # the paper's: 1000 linear betas, epsilon, learned variance
FIXED = DiffusionConfig(learned_variance=False)
GUIDED = GuidanceConfig(2.0)


def images(model: Pipeline, count: int = 9, seed: int = 5, batch: int = 64, **settings: object) -> np.ndarray:
    config = SampleConfig(**{"sampler": "euler", "steps": 4, **settings})  # type: ignore[arg-type]
    return np.concatenate(list(model.batches(None, seed, count, config, batch)))


def apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference, in levels of 255."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("diffusion", [LEARNED, FIXED, DiffusionConfig("rectified-flow", "velocity", False)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_of_a_seed_is_the_same_in_any_batch(make: Callable, sampler: str, diffusion: DiffusionConfig):
    """To one level of 255: matrix products of different shapes may round differently in the last bit."""
    model = make(diffusion=diffusion)
    whole = images(model, 64, batch=64, sampler=sampler, steps=3, guidance=GUIDED)
    for batch in (1, 7):
        assert apart(images(model, 64, batch=batch, sampler=sampler, steps=3, guidance=GUIDED), whole) <= 1
    assert apart(images(model, 5, batch=64, sampler=sampler, steps=3, guidance=GUIDED), whole[:5]) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_and_places_give_different_images_and_the_same_ones_twice(make: Callable, sampler: str):
    model = make(names=(), diffusion=FIXED)
    one, again, other = (images(model, seed=seed, sampler=sampler) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert min(apart(a, b) for a in one for b in other) > 20
    assert min(apart(one[i], one[j]) for i in range(9) for j in range(i)) > 20


def test_the_noise_of_image_k_is_its_own_and_not_that_of_a_neighbouring_seed(make: Callable):
    model = make(names=())

    def first_noise(seed: int, first: int) -> torch.Tensor:
        config = SampleConfig("ddpm", 2)
        return next(model.states(Condition.of_labels(torch.full((3,), -1)), seed, first, config)).x_s

    torch.testing.assert_close(first_noise(0, 1)[0], first_noise(0, 0)[1])
    torch.testing.assert_close(first_noise(0, 2)[0], first_noise(0, 0)[2])
    assert not torch.allclose(first_noise(1, 0)[0], first_noise(0, 0)[1], atol=0.1)


def test_the_noise_added_between_steps_differs_from_step_to_step(make: Callable):
    """With a network that predicts zero, ancestral steps add noise alone."""
    model = make(names=(), diffusion=FIXED, pixels=(1, 16, 16))
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.zero_()
    x = [
        state.x_s.flatten()
        for state in model.states(Condition.of_labels(torch.tensor([-1])), 0, 0, SampleConfig("ddpm", 200))
    ]
    added = torch.stack([after - before for before, after in pairwise(x[:21])])
    correlation = torch.corrcoef(added).fill_diagonal_(0)
    assert correlation.abs().max() < 0.35  # 256 numbers: five deviations


def test_global_random_numbers_play_no_part_and_are_not_drawn(make: Callable):
    model = make()
    torch.manual_seed(1)
    one, state = images(model, sampler="ddpm"), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    np.testing.assert_array_equal(images(model, sampler="ddpm"), one)


def test_labels_are_given_out_in_turn(make: Callable):
    model = make()
    assert model.label_indices(None, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert model.label_indices(["fish", 0], 5).tolist() == [2, 0, 2, 0, 2]
    assert model.label_indices(["dog"], 3).tolist() == [1, 1, 1]
    assert make(names=()).label_indices(None, 3).tolist() == [-1, -1, -1]
    config = SampleConfig("euler", 4)
    in_turn, dogs = (np.concatenate(list(model.batches(k, 0, 6, config, 4))) for k in (["fish", "dog"], ["dog"]))
    np.testing.assert_array_equal(in_turn[1::2], dogs[1::2])
    assert apart(in_turn[::2], dogs[::2]) > 5


def test_a_class_without_training_images_is_sampled_only_by_name(make: Callable, tmp_path):
    model = make()
    model.counts = (3, 0, 1)
    model.save(tmp_path)
    loaded = Pipeline.load(tmp_path)
    assert loaded.label_indices(None, 4).tolist() == [0, 2, 0, 2]
    assert set(loaded.random_labels(None, 50, 0)) == {0, 2}
    assert loaded.label_indices(["dog"], 2).tolist() == [1, 1]


def test_labels_may_be_an_array(make: Callable):
    model = make()
    np.testing.assert_array_equal(model.sample(np.array([2, 0]), steps=2), model.sample([2, 0], steps=2))  # type: ignore[arg-type]


def test_a_label_given_is_what_the_network_is_told(make: Callable):
    """Samples of a model whose label table has been turned round are those of the other labels."""
    model, turned = make(), make()
    with torch.no_grad():
        tables = [each.network.get_parameter("condition_embedding.labels.table.weight") for each in (turned, model)]
        tables[0][:3] = tables[1][:3].flip(0)
    np.testing.assert_array_equal(model.sample(labels=["cat", "fish"]), turned.sample(labels=["fish", "cat"]))


@pytest.mark.parametrize("block", PAPER_BLOCKS)
def test_weights_cast_once_give_the_images_of_weights_cast_in_every_step(make: Callable, block: str):
    model = make(config=DiTConfig(depth=2, width=16, heads=2, block=block))  # type: ignore[arg-type]
    config = SampleConfig("euler", 3, GUIDED, "bf16")
    exact, expected = images(model), images(model, precision="bf16", guidance=GUIDED)
    model.prepare(config)
    assert model.denoiser.prepared(False).network is model.network
    np.testing.assert_array_equal(images(model, precision="bf16", guidance=GUIDED), expected)
    np.testing.assert_array_equal(images(model), exact)  # float32 still has its own weights
    assert apart(exact, expected) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, compiling
def test_compiled_blocks_get_batches_of_one_size(make: Callable):
    model, sizes = make(), []
    expected = images(model, 11, batch=4)
    model.prepare(SampleConfig("euler", 4), compiled=True)
    model.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.compiler.set_stance("force_eager"):  # no code is generated, which takes seconds
        made = list(model.batches(None, 5, 11, SampleConfig("euler", 4), 4))
        assert [len(batch) for batch in made] == [4, 4, 3]
        assert set(sizes) == {4}
        assert apart(np.concatenate(made), expected) <= 1
        sizes.clear()
        assert len(images(model, 3, batch=4)) == 3
        assert set(sizes) == {3}  # the only batch


def test_batches_come_as_they_are_made(make: Callable):
    config = SampleConfig("euler", 2)
    assert [len(batch) for batch in make().batches(None, 0, 10, config, 4)] == [4, 4, 2]


@pytest.mark.parametrize("pixels", [(1, 8, 8), (3, 8, 12), (3, 12, 4), (2, 6, 6), (5, 4, 4)])
def test_images_have_the_datas_shape(make: Callable, pixels: tuple[int, int, int]):
    made = images(make(pixels), 3)
    assert made.dtype == np.uint8
    assert made.shape == (3, *pixels[1:], pixels[0])
    assert apart(made[0], made[1]) > 20


def test_latent_models_decode_what_they_sample(make: Callable):
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8)), 3, 0).eval()
    autoencoder.set_statistics(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5]))
    model = make((3, 8, 12), autoencoder=autoencoder, diffusion=LEARNED)
    config = SampleConfig("ddpm", 3)
    made = np.concatenate(list(model.batches(None, 0, 4, config)))
    *_, last = model.states(model.condition(None, 4), 0, 0, config)
    assert last.x_s.shape == (4, 2, 4, 6)
    raw = last.x_s.double() * torch.tensor([2.0, 0.5]).view(2, 1, 1) + torch.tensor([0.5, -1.0]).view(2, 1, 1)
    with torch.no_grad():
        pixels = autoencoder.vae.decode(raw.float()).sample.double().permute(0, 2, 3, 1).numpy()  # type: ignore[operator]
    direct = np.clip(np.round((pixels + 1) * 127.5), 0, 255)
    assert made.shape == (4, 8, 12, 3)
    assert apart(made, direct) <= 1
    assert apart(images(model, 4, sampler="ddpm", batch=1), images(model, 4, sampler="ddpm", batch=4)) <= 1


def test_latents_become_bytes_by_rounding_and_clipping(make: Callable):
    model = make(names=())
    model.autoencoder.set_statistics(torch.tensor([0.0]), torch.tensor([1.0]))
    levels = torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1
    assert model.decode(levels).flatten().tolist() == list(range(256))
    assert model.decode(levels + 0.4 / 127.5).flatten().tolist() == list(range(256))
    assert model.decode(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("guidance", [GuidanceConfig(), GuidanceConfig(8.0), GuidanceConfig(4.0, 0.2, 0.7)])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("diffusion", [LEARNED, DiffusionConfig("rectified-flow", "velocity", False)])
def test_pixel_models_stay_between_black_and_white(
    make: Callable, diffusion: DiffusionConfig, sampler: str, guidance: GuidanceConfig
):
    model = make((3, 8, 8), diffusion=diffusion)
    config = SampleConfig(sampler, 5, guidance)
    states = list(model.states(model.condition(None, 4), 0, 0, config))
    for state in states:
        assert model.autoencoder.decode(state.x0).abs().max() <= 1 + 1e-5
    made = model.autoencoder.decode(states[-1].x_s)
    assert made.abs().max() <= 1 + 1e-5
    assert made.std() > 0.1


def test_steps_run_from_noise_to_data_and_there_are_as_many_as_asked(make: Callable):
    for sampler in SAMPLERS:
        states = list(make().states(Condition.of_labels(torch.tensor([0, 1])), 0, 0, SampleConfig(sampler, 6)))
        times = [state.s.t for state in states]
        assert len(times) == 6
        assert times == sorted(times, reverse=True)
        assert times[-1] == 0
        assert states[-1].s.sigma == 0


def test_the_callers_own_code_runs_with_gradients_between_steps(make: Callable):
    model = make()
    steps = model.states(Condition.of_labels(torch.tensor([0])), 0, 0, SampleConfig("euler", 3))
    next(steps)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    for parameter in model.network.parameters():
        assert not parameter.is_inference()
    batches = model.batches(None, 0, 4, SampleConfig("euler", 2), batch=2)
    next(batches)
    assert not torch.is_inference_mode_enabled()


def test_ddpm_with_a_learned_variance_uses_it(make: Callable):
    """At the variance's two ends the noise added in a step has the posterior's and beta's size."""
    model = make(names=(), diffusion=LEARNED, pixels=(1, 16, 16))
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    here, there = alpha_bar[222], alpha_bar[111]  # two rows next to each other of ten
    beta = 1 - here / there
    posterior = beta * (1 - there) / (1 - here)
    for level, variance in ((-1.0, posterior), (1.0, beta), (0.0, math.sqrt(posterior * beta))):
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter.zero_()
            bias = model.network.final_layer.linear.bias  # of four patch pixels, each epsilon and variance
            bias.view(4, 2)[:, 1] = level
        states = list(model.states(Condition.of_labels(torch.full((16,), -1)), 0, 0, SampleConfig("ddpm", 10)))
        before, after = states[6].x_s.double(), states[7]
        mean = (  # Ho et al. 2020, equation 7
            math.sqrt(there) * beta / (1 - here) * after.x0
            + math.sqrt(here / there) * (1 - there) / (1 - here) * before
        )
        assert float((after.x_s - mean).std()) == pytest.approx(math.sqrt(variance), rel=0.05)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_as_many_steps_as_rows_are_the_most(make: Callable, refuses: Callable, sampler: str):
    model = make(diffusion=LEARNED, names=())
    assert images(model, 1, sampler=sampler, steps=1000).shape == (1, 8, 8, 1)
    refuses(lambda: images(model, 1, sampler=sampler, steps=1001), "1001", "1 to 1000")


@pytest.mark.parametrize("steps", [0, -5])
def test_no_steps_are_refused(make: Callable, refuses: Callable, steps: int):
    refuses(lambda: make().sample(count=1, steps=steps), f"{steps} sampling steps", "1 or more")
    refuses(lambda: make(diffusion=LEARNED).sample(count=1, steps=steps), f"{steps} sampling steps", "1 to 1000")


def test_an_unknown_sampler_names_the_nearest(make: Callable, refuses: Callable):
    refuses(lambda: make().sample(count=1, sampler="ddimm"), "'ddimm'", "did you mean 'ddim'?")
    refuses(lambda: make().sample(count=1, sampler=""), "unknown sampler ''", "heun")


def test_a_negative_seed_and_no_images_are_refused(make: Callable, refuses: Callable):
    refuses(lambda: make().sample(count=1, seed=-1), "seed -1", "0 or more")
    refuses(lambda: make().sample(count=0), "count 0", "1 or more")
    refuses(lambda: make().sample(count=-3), "count -3")
    refuses(lambda: make().sample(count=1, batch=0), "batch 0")


def test_an_unknown_label_is_refused(make: Callable, refuses: Callable):
    refuses(lambda: make().sample(labels=["cat", "fihs"]), "'fihs'", "did you mean 'fish'?")
    refuses(lambda: make().sample(labels=[3]), "3", "0 to 2")


def test_seeds_may_be_large(make: Callable):
    assert apart(images(make(), seed=2**63), images(make(), seed=2**63 + 1)) > 20


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("ends", [((5, 0), (6, 0)), ((5, 0), (5, 2)), ((5, 1), (9, 2))])
def test_an_interpolation_begins_and_ends_with_the_images_of_its_ends(make: Callable, sampler: str, ends: tuple):
    model, config = make(), SampleConfig(sampler, 4, GUIDED)
    *_, last = model.run(model.interpolation(ends[0], ends[1], 5, config), config)
    found = model.decode(last.x_s)
    for image, (seed, label) in ((found[0], ends[0]), (found[-1], ends[1])):
        alone = model.sample([label], seed=seed, count=1, sampler=sampler, steps=4, guidance=GUIDED)[0]
        assert apart(image, alone) <= 1
    steps = [apart(one, other) for one, other in pairwise(found)]
    assert min(steps) > 0
    assert max(steps) < apart(found[0], found[-1]) + 30


def test_the_noise_of_an_interpolation_stays_as_strong(make: Callable):
    model = make(names=())
    config = SampleConfig("euler", 2)
    state = next(model.run(model.interpolation((1, -1), (2, -1), 9, config), config))
    one, other = state.x_t[0], state.x_t[-1]
    angles = torch.linspace(0, math.pi / 2, 9).view(-1, 1, 1, 1)
    torch.testing.assert_close(state.x_t, angles.cos() * one + angles.sin() * other)


def test_an_interpolation_needs_two_images(make: Callable):
    with pytest.raises(UserError, match="1 images between two; 2 or more"):
        make().interpolation((0, 0), (1, 0), 1, SampleConfig("euler", 2))


def test_a_dit_makes_images_of_another_size(make: Callable):
    model = make((1, 8, 8))
    assert model.sample(count=2, steps=2, size=(12, 20)).shape == (2, 12, 20, 1)
    assert np.array_equal(model.sample(count=2, steps=2, size=(8, 8)), model.sample(count=2, steps=2))
    with pytest.raises(UserError, match=r"9x12.*patch 2"):
        model.sample(count=1, steps=1, size=(9, 12))


def test_times_shift_with_the_number_of_tokens(make: Callable):
    """Esser et al. 2024, equation 23: by the square root of the ratio, here 4 times as many tokens."""
    flow = DiffusionConfig("rectified-flow", "velocity", learned_variance=False, shift=1.5)
    model, config = make(diffusion=flow), SampleConfig("euler", 4)
    condition = Condition.of_labels(torch.tensor([-1]))
    height, width = model.size
    for size, shift in (((height, width), 1.5), ((2 * height, 2 * width), 3.0)):
        trajectory = model.trajectory(condition, image_generators(0, 0, 1), config, size)
        times = [state.t.t for state in model.run(trajectory, config)]
        assert times == pytest.approx([shift * t / (1 + (shift - 1) * t) for t in (1.0, 0.75, 0.5, 0.25)])
    assert make(diffusion=replace(flow, shift=1.0)).time_grid(config, model.latent_shape()) is None
