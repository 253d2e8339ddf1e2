"""Find a network's weights, and the settings it was trained with, in the files that trainers write.

Trainers nest weights ({"model": ..., "ema": ..., "args": ...}, Lightning's "state_dict") and put prefixes before the names
(DDP's ``module.``, torch.compile's ``_orig_mod.``, Lightning's attribute, as ``model.`` or ``net.``), in any order and depth.
Both are recognised by one tensor that the layout is known to have, not by a list of names.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ditlab.errors import UserError
from ditlab.interop.architectures import identify
from ditlab.runtime.weights import load_tensors

PUBLIC, DIFFUSERS = "x_embedder.proj.weight", "pos_embed.proj.weight"  # in the public DiT layout, in diffusers'
# Parts of names that wrappers of modules insert: DDP and DataParallel, compile, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGES = re.compile(r"ema|averag|avg|shadow", re.IGNORECASE)  # names of the moving average, which samples best
SETTINGS = ("args", "config", "cfg", "hparams", "hyper_parameters", "model_args", "model_config", "train_config")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of files of weights in a folder
VARIANTS = ("", ".fp32", ".bf16", ".fp16")  # most precise first
SHARD = re.compile(r"-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class Weights:
    """The weights of one network.

    Attributes:
        tensors: by the layout's names, without prefixes.
        settings: of the training, as the file has them: ``num_classes``, ``path_type``, ...
        diffusers: the layout is diffusers', not the public one.
        notes: what was chosen and what was not used, in lines to print.
    """

    tensors: dict[str, Tensor]
    settings: Mapping[str, object] = field(default_factory=dict)
    diffusers: bool = False
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """The weights in a .pt or .safetensors, in any nest and with any prefix; the moving average if there is one.

    UserError: a missing or damaged file, a pickle that contains code, or no weights of a DiT; it names what there is.
    """
    if path.is_dir() or not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    return find_weights(_whole(path), path)


def folder_weights(folder: Path) -> Weights:
    """The weights in a folder of one network, as diffusers and accelerate save them: one file, shards, or a variant."""
    for stem in STEMS:
        for kind in ("safetensors", "bin"):
            for variant in VARIANTS:
                names = (f"{stem}{variant}.{kind}", f"{stem}.{kind}.index{variant}.json")
                found = next((folder / name for name in names if (folder / name).is_file()), None)
                if found is not None:
                    return find_weights(_whole(found), found)
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if any(name.endswith(".distcp") for name in files):
        raise UserError(
            f"{folder} is a distributed checkpoint of torch; convert it to one file with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch`"
        )
    listed = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
    raise UserError(f"{folder} contains no file of weights ({listed or 'it is empty'}); give the file itself")


def _whole(path: Path) -> Any:
    """The content of a file, or of all the shards of an index or of a shard."""
    if path.suffix == ".json":
        try:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is not an index of shards ({error})") from error
        parts = [path.parent / str(name) for name in shards]
    elif match := SHARD.search(path.name):
        count = int(match[0][-5:])
        names = [SHARD.sub(f"-{k:05}-of-{count:05}", path.name) for k in range(1, count + 1)]
        parts = [path.parent / name for name in names]
    else:
        return load_tensors(path)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(f"{path} has {len(parts)} shards, of which {missing[0]} is missing")
    return {name: tensor for part in parts for name, tensor in load_tensors(part).items()}


def find_weights(content: Any, path: Path) -> Weights:
    """The weights of a DiT in the loaded content of a file; ``path`` is for errors, which are as in ``read_weights``."""
    groups = list(_groups(content))
    found = [candidate for where, tensors in groups for candidate in _candidates(where, tensors)]
    if not found:
        _refuse(groups, path)
    # The average first, then a whole network before a part of one.
    chosen = max(found, key=lambda each: (bool(AVERAGES.search(each[0])), len(each[1])))
    where, tensors, is_diffusers = chosen
    notes = []
    others = [each[0] or "the top level" for each in found if each is not chosen]
    if where or others:
        average = "" if AVERAGES.search(where) else ", no moving average (EMA)"
        notes.append(
            f"weights: {where or 'the top level'}{average}" + (f"; not used: {', '.join(others)}" if others else "")
        )
    return Weights(tensors, _settings(content), is_diffusers, tuple(notes))


def _groups(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dictionary that has tensors by name, and the keys that lead to it."""
    if not isinstance(content, Mapping) or len(where) > 4:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield where, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _groups(value, (*where, name))


def _candidates(where: tuple[str, ...], tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor], bool]]:
    """The networks in one dictionary: where they are (``ema``, ``state_dict: net.``), tensors, and whether of diffusers."""
    clean = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    for anchor in (PUBLIC, DIFFUSERS):
        prefixes = [name.removesuffix(anchor) for name in clean if name == anchor or name.endswith(f".{anchor}")]
        for prefix in prefixes:
            longer = tuple(each for each in prefixes if each != prefix and each.startswith(prefix))
            inside = {
                name.removeprefix(prefix): tensor
                for name, tensor in clean.items()
                if name.startswith(prefix) and not (longer and name.startswith(longer))
            }
            nest = ".".join(where)
            yield ": ".join(part for part in (nest, prefix) if part), inside, anchor == DIFFUSERS


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _settings(content: Any) -> dict[str, object]:
    """The settings that a trainer stores with its weights, flat: the innermost names with plain values."""
    found: dict[str, object] = {}

    def collect(value: Any) -> None:
        items = vars(value) if isinstance(value, Namespace) else value
        for name, each in items.items() if isinstance(items, Mapping) else ():
            if isinstance(each, Namespace | Mapping):
                collect(each)
            elif isinstance(each, str | int | float | bool):
                found.setdefault(str(name), each)

    if isinstance(content, Mapping):
        for name in SETTINGS:
            if not isinstance(content.get(name), Tensor):
                collect(content.get(name))
    return found


def _refuse(groups: list[tuple[tuple[str, ...], dict[str, Tensor]]], path: Path) -> None:
    names = [name for _, tensors in groups for name in tensors]
    if not names:
        raise UserError(f"{path} is not in the public DiT layout: expected tensors by name, and it has none")
    what = identify(names)
    shown = f"it is {what}" if what else f"it lacks {PUBLIC!r}, and has {', '.join(names[:3])}, ..."
    raise UserError(f"{path} is of another architecture, not in the public DiT layout: {shown}")
