import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL

import ditlab
from ditlab.diffusion import DiffusionConfig, GuidanceConfig
from ditlab.encoders import AutoencoderConfig, load_pretrained, new_kl
from ditlab.models.network import rename_weights
from ditlab.pipelines import Pipeline, SampleConfig

DIGITS = tuple(str(digit) for digit in range(10))


def same(one: Pipeline, other: Pipeline) -> None:
    np.testing.assert_array_equal(one.sample(count=5, seed=3), other.sample(count=5, seed=3))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "model.json").read_text())
    change(record)
    (folder / "model.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "diffusion", [DiffusionConfig(), DiffusionConfig("rectified-flow", "velocity", False, "logit-normal", 0.2)]
)
def test_a_saved_model_comes_back_whole(make: Callable, tmp_path: Path, diffusion: DiffusionConfig):
    defaults = SampleConfig("ddim", 3, GuidanceConfig(2.0, 0.1, 0.9, 1))
    model = make((3, 8, 12), diffusion=diffusion, defaults=defaults)
    model.facts = {"images": 12}
    model.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    for path in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        back = ditlab.load(path)
        assert (back.pixels, back.names) == ((3, 8, 12), ("cat", "Dog", "fish"))
        assert (back.diffusion, back.defaults, back.facts) == (diffusion, defaults, {"images": 12})
        assert not back.network.training
        same(back, model)
        back.save(tmp_path / "again")
        for name in ("model.json", "model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_trained_autoencoder_travels_inside_the_model(make: Callable, tmp_path: Path):
    autoencoder = new_kl(AutoencoderConfig(kind="kl", latent_channels=2, widths=(8, 8)), 1, 5).eval()
    autoencoder.set_statistics(torch.tensor([0.5, -0.5]), torch.tensor([2.0, 3.0]))
    model = make((1, 8, 12), autoencoder=autoencoder)
    model.save(tmp_path)
    back = Pipeline.load(tmp_path)
    assert back.autoencoder.fingerprint() == autoencoder.fingerprint()
    assert back.network.spec.latent.channels == 2
    assert model.sample(count=2).shape == (2, 8, 12, 1)
    same(back, model)


@pytest.mark.parametrize("classes", [0, 3])
def test_a_model_of_format_1_is_read(make: Callable, tmp_path: Path, classes: int):
    """As version 0.1 wrote it: other keys, other names of weights."""
    model = make((3, 8, 12), names=("cat", "Dog", "fish")[:classes])
    model.save(tmp_path)
    record = json.loads((tmp_path / "model.json").read_text())
    network = record["network"]
    del network["kind"]
    process = record["process"]
    process["label_dropout"] = process.pop("condition_dropout")
    del process["time_scale"]
    old = {
        "format": 1,
        "network": {
            "config": network,
            "input": {
                "channels": 3, "height": 8, "width": 12, "classes": classes, "learned_variance": False, "null_class": True,
            },
        },
        "diffusion": process, "autoencoder": record["autoencoder"], "pixels": [3, 8, 12], "names": record["class_names"],
        "sample": record["sample"], "facts": record["facts"],
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(old))
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    table = weights.pop("network.condition_embedding.labels.table.weight")
    safetensors.torch.save_file(
        weights | {"network.label_embedding.table.weight": table}, tmp_path / "model.safetensors"
    )
    same(Pipeline.load(tmp_path), model)


def test_old_names_of_weights_are_mapped_to_a_shared_modulation():
    """Only the network's own modulation is renamed, not the blocks'."""
    old = {
        "modulation.weight": 1,
        "blocks.0.modulation.weight": 2,
        "final_layer.modulation.bias": 3,
        "label_embedding.x": 4,
    }
    assert rename_weights(old) == {
        "shared_modulation.weight": 1, "blocks.0.modulation.weight": 2, "final_layer.modulation.bias": 3,
        "condition_embedding.labels.x": 4,
    }  # fmt: skip


def pretrained_model(make: Callable, folder: Path) -> Pipeline:
    torch.manual_seed(0)
    settings: dict = {
        "block_out_channels": (8, 8), "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    AutoencoderKL(**settings).save_pretrained(folder)
    autoencoder = load_pretrained(str(folder))
    autoencoder.set_statistics(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([2.0, 3.0, 4.0, 5.0]))
    return make((3, 8, 8), autoencoder=autoencoder)


def test_a_pretrained_vae_is_referred_to_and_not_carried(
    make: Callable, tmp_path: Path, refuses: Callable, offline: None
):
    model = pretrained_model(make, tmp_path / "vae")
    model.save(tmp_path / "run")
    tensors = safetensors.torch.load((tmp_path / "run" / "model.safetensors").read_bytes())
    assert {name for name in tensors if name.startswith("autoencoder.")} == {"autoencoder.mean", "autoencoder.std"}
    back = Pipeline.load(tmp_path / "run")
    assert back.autoencoder.std.flatten().tolist() == [2, 3, 4, 5]
    same(back, model)
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    refuses(lambda: Pipeline.load(tmp_path / "run"), str(tmp_path / "vae"), "config.json")


@pytest.mark.parametrize("damage", ["missing", "wrong shape"])
def test_a_model_without_the_statistics_of_its_vae_is_refused(
    make: Callable, tmp_path: Path, refuses: Callable, damage: str
):
    pretrained_model(make, tmp_path / "vae").save(tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    tensors = safetensors.torch.load(weights.read_bytes())
    if damage == "missing":
        del tensors["autoencoder.mean"]
    else:
        tensors["autoencoder.mean"] = torch.zeros(3)
    weights.write_bytes(safetensors.torch.save(tensors))
    refuses(lambda: Pipeline.load(tmp_path / "run"), str(weights), "mean")


@pytest.fixture
def run(make: Callable, tmp_path: Path) -> Path:
    make().save(tmp_path / "run")
    return tmp_path / "run"


def test_no_model_says_what_was_expected(run: Path, refuses: Callable):
    for path in (run.parent, run / "none", run.parent / "model.safetensors"):
        refuses(lambda path=path: Pipeline.load(path), str(path), "model.safetensors", "model.json")
    (run / "model.json").unlink()
    refuses(lambda: Pipeline.load(run), "no model", "model.json")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_truncated_files_are_one_line(run: Path, refuses: Callable, name: str, keep: float):
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    refuses(lambda: Pipeline.load(run), str(run), "cannot be read")


@pytest.mark.parametrize("text", ["[]", "3", "{}", "null", '"text"'])
def test_a_record_that_is_something_else_is_one_line(run: Path, refuses: Callable, text: str):
    (run / "model.json").write_text(text)
    refuses(lambda: Pipeline.load(run), "model.json", "not a model record")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["network"].update(registers=4), ("registers", "version")),
        (lambda record: record["conditions"][0].update(frames=4), ("frames", "version")),
        (lambda record: record["process"].update(churn=1), ("churn", "version")),
        (lambda record: record["sample"].update(churn=1), ("churn", "version")),
        (lambda record: record.update(format=3), ("format 3", "formats 1 and 2")),
        (lambda record: record.pop("format"), ("format",)),
        (lambda record: record.pop("class_names"), ("class_names",)),
        (lambda record: record["sample"].pop("guidance"), ("guidance",)),
        (lambda record: record["process"].update(schedule="cosine"), ("cosine", "linear-beta")),
        (lambda record: record["process"].update(target="nois"), ("nois",)),
        (lambda record: record["network"].update(block="adaln-one"), ("adaln-one", "adaln-zero")),
        (lambda record: record["network"].update(depth="two"), ("model.json",)),
        (lambda record: record["autoencoder"].update(kind="vqvae"), ("vqvae", "pretrained")),
        (lambda record: record["autoencoder"].pop("channels"), ("channels",)),
        (lambda record: record.update(autoencoder={"kind": "kl", "config": {"future": 1}}), ("future",)),
    ],
)
def test_a_record_of_another_version_names_what_it_does_not_know(
    run: Path, refuses: Callable, change: Callable, words: tuple[str, ...]
):
    edit(run, change)
    refuses(lambda: Pipeline.load(run), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record["network"].update(width=20), ("patch_embedding.weight", "16", "20")),
        (lambda record: record["network"].update(depth=3), ("lacks", "blocks.2.")),
        (lambda record: record["network"].update(depth=1), ("unknown", "blocks.1.")),
        (lambda record: record["conditions"][0].update(classes=5), ("condition_embedding.labels.table.weight",)),
        (lambda record: record["autoencoder"].update(channels=2), ("mean",)),
    ],
)
def test_weights_of_another_architecture_name_the_tensor(
    run: Path, refuses: Callable, change: Callable, words: tuple[str, ...]
):
    edit(run, change)
    refuses(lambda: Pipeline.load(run), str(run / "model.safetensors"), "another architecture", *words)


def test_a_pickle_is_never_opened(run: Path, refuses: Callable):
    torch.save({"a": torch.zeros(1)}, run / "model.safetensors")
    refuses(lambda: Pipeline.load(run), str(run), "cannot be read")


def test_labels_go_by_name_in_any_case_and_by_number(make: Callable):
    model = make()
    assert [model.label(label) for label in ("cat", "DOG", "dog", "Fish", 0, 2, "1", np.int64(1))] == [
        0, 1, 1, 2, 0, 2, 1, 1,
    ]  # fmt: skip


def test_names_that_differ_only_in_case_are_told_apart(make: Callable, refuses: Callable):
    model = make(names=("Cat", "cat", "CAT"))
    assert [model.label(label) for label in ("Cat", "cat", "CAT")] == [0, 1, 2]
    refuses(lambda: model.label("cAt"), "'cAt'", "0 (Cat), 1 (cat), 2 (CAT)")


def test_names_that_are_numbers_are_names_first_and_numbers_stay_numbers(make: Callable):
    model = make(names=("2", "1", "0"))
    assert [model.label(label) for label in ("2", "1", "0")] == [0, 1, 2]
    assert [model.label(label) for label in (0, 1, 2)] == [0, 1, 2]
    digits = make(names=DIGITS)
    assert [digits.label(label) for label in ("0", "9", 4, "4")] == [0, 9, 4, 4]


@pytest.mark.parametrize("label", [3, "3", -1, "-1", 10**9])
def test_a_number_out_of_range_names_the_range(make: Callable, refuses: Callable, label: int | str):
    refuses(lambda: make().label(label), str(label), "out of range", "3 classes, 0 to 2")


@pytest.mark.parametrize("label", ["fisch", "", "--5", "²", "1.5", "-"])
def test_an_unknown_name_lists_the_known_and_the_nearest(make: Callable, refuses: Callable, label: str):
    message = refuses(lambda: make().label(label), repr(label), "cat, Dog, fish")
    assert ("did you mean 'fish'?" in message) == (label == "fisch")


def test_classes_without_names_go_by_number(make: Callable, refuses: Callable):
    model = make(names=(), classes=3)
    assert (model.label("2"), model.label(0)) == (2, 0)
    refuses(lambda: model.label("cat"), "'cat'", "0, 1, 2")


@pytest.mark.parametrize("scale", [1.5, 0.0])
def test_guidance_without_a_null_class_is_refused(make: Callable, refuses: Callable, scale: float):
    model = make(null_class=False)
    refuses(lambda: model.sample(count=1, guidance=scale), f"guidance {scale}", "condition dropout 0", "guidance 1")
    assert model.sample(count=1, guidance=1).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_guidance_that_makes_no_sense_is_refused(make: Callable, refuses: Callable, scale: float):
    refuses(lambda: make().sample(count=1, guidance=scale), "guidance scale")


def test_an_unconditional_model_samples_and_refuses_labels_and_guidance(
    make: Callable, refuses: Callable, tmp_path: Path
):
    model = make(names=())
    assert model.classes == 0
    images = model.sample(count=3)
    assert images.shape == (3, 8, 8, 1)
    assert not np.array_equal(images[0], images[1])
    model.save(tmp_path)
    same(Pipeline.load(tmp_path), model)
    refuses(lambda: model.sample(labels=["cat"], count=1), "'cat'", "unconditional")
    refuses(lambda: model.sample(count=1, guidance=2), "unconditional", "guidance 1")


def test_samples_follow_the_models_defaults_unless_told(make: Callable):
    model = make(defaults=SampleConfig("heun", 3, GuidanceConfig(2.0)))
    told = make(defaults=SampleConfig("ddpm", 9))
    np.testing.assert_array_equal(model.sample(), told.sample(sampler="heun", steps=3, guidance=2.0, count=16))
    assert model.sample(labels=["cat", "dog"]).shape == (2, 8, 8, 1)
    assert not np.array_equal(model.sample(), model.sample(guidance=1))
