"""The registry of networks: a configuration by name, from a record and back, and built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from ditlab.errors import UserError, nearest
from ditlab.models.dit import NAMES, DiTConfig
from ditlab.models.spec import Network, NetworkSpec
from ditlab.models.unet import UNETS, UNetConfig

NetworkConfig = DiTConfig | UNetConfig

NETWORKS: dict[str, type[NetworkConfig]] = {config.kind: config for config in (DiTConfig, UNetConfig)}
DESCRIBED = {  # fields that are always listed
    DiTConfig: ("depth", "width", "patch", "block"),
    UNetConfig: ("width", "multipliers", "blocks", "attention"),
}

# Names of weights before version 0.2, by today's.
RENAMED_WEIGHTS = {"label_embedding.": "condition_embedding.labels.", "modulation.": "shared_modulation."}


def named(name: str) -> NetworkConfig:
    """The configuration of a model of the paper (``DiT-B/2``), of one it is compared with (``ADM-256``), or ``unet``.

    Raises:
        UserError: an unknown model.
    """
    if name.lower() in (known.lower() for known in UNETS):
        return UNetConfig.named(name)
    if "/" in name:
        return DiTConfig.named(name)
    raise UserError(f"unknown model {name!r}; {nearest(name, (*UNETS, *NAMES))}")


def build(config: NetworkConfig, spec: NetworkSpec) -> Network:
    """A network, its weights still to be drawn or loaded.

    Raises:
        UserError: the configuration is not valid, or does not fit the spec.
    """
    return config.build_network(spec)


def to_record(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as JSON has it."""
    return {"kind": config.kind, **asdict(config)}


def of_record(record: Mapping[str, Any], where: str = "the network") -> tuple[type[NetworkConfig], dict[str, Any]]:
    """The class of a record and its fields; ``where`` names it in errors. A record without ``kind`` is a DiT's.

    Raises:
        UserError: an unknown kind of network.
    """
    found = {**record}
    name = found.pop("kind", DiTConfig.kind)
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(f"{where} is of an unknown kind, {name!r}; {nearest(str(name), NETWORKS)}")
    return NETWORKS[name], found


def from_record(record: Mapping[str, Any]) -> NetworkConfig:
    """A configuration back from ``to_record``, through JSON or not.

    Raises:
        UserError: an unknown kind of network.
        TypeError: fields it does not have.
    """
    config, found = of_record(record)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return config(**values)


def rename_weights(state: Mapping[str, Any]) -> dict[str, Any]:
    """A network's state dict with names from before version 0.2 replaced by today's."""
    renamed = {}
    for name, value in state.items():
        old = next((prefix for prefix in RENAMED_WEIGHTS if name.startswith(prefix)), "")
        renamed[RENAMED_WEIGHTS[old] + name.removeprefix(old) if old else name] = value
    return renamed


def describe(config: NetworkConfig) -> str:
    """A configuration in one line: the network's kind, its size, and every field that is not the default."""
    described, default = [], type(config)()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in DESCRIBED[type(config)] or value != getattr(default, field.name):
            shown = " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value
            described.append(f"{field.name.replace('_', ' ')} {shown}")
    return f"{config.kind}: {', '.join(described)}"


def on_meta(config: NetworkConfig, spec: NetworkSpec) -> Network:
    """A network on the meta device, without memory, to count and measure.

    Raises:
        UserError: as ``build``.
    """
    with torch.device("meta"):
        return build(config, spec)


def parameter_count(module: nn.Module) -> int:
    """Trained numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())
