"""Either network: a configuration by name, from a record and back, and built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from ditlab.errors import UserError, nearest
from ditlab.models.dit import NAMES, DiT, DiTConfig, NetworkInput
from ditlab.models.unet import UNETS, UNet, UNetConfig

Network = DiT | UNet
NetworkConfig = DiTConfig | UNetConfig

KINDS: dict[str, type[NetworkConfig]] = {"DiT": DiTConfig, "U-Net": UNetConfig}
SIZE = ("depth", "width", "patch", "block", "multipliers", "blocks", "attention")  # fields that are always described


def named(name: str) -> NetworkConfig:
    """The configuration of a model of the paper (``DiT-B/2``), of one it is compared with (``ADM-256``), or ``unet``.

    Raises:
        UserError: no such model.
    """
    if name.lower() in (known.lower() for known in UNETS):
        return UNetConfig.named(name)
    if "/" in name:
        return DiTConfig.named(name)
    raise UserError(f"unknown model {name!r}; {nearest(name, (*UNETS, *NAMES))}")


def kind(config: NetworkConfig) -> str:
    """What a network of this configuration is called: DiT or U-Net."""
    return "U-Net" if isinstance(config, UNetConfig) else "DiT"


def build(config: NetworkConfig, shape: NetworkInput) -> Network:
    """A network, its weights still to be drawn or loaded.

    Raises:
        UserError: the configuration is not a valid one, or does not fit the input.
    """
    return UNet(config, shape) if isinstance(config, UNetConfig) else DiT(config, shape)


def to_record(config: NetworkConfig) -> dict[str, Any]:
    """A configuration as JSON has it. A U-Net's says so; a record without ``kind`` is a DiT's, as they were before."""
    return {"kind": kind(config), **asdict(config)} if isinstance(config, UNetConfig) else asdict(config)


def of_record(record: Mapping[str, Any], where: str = "the network") -> tuple[type[NetworkConfig], dict[str, Any]]:
    """What a record is of, and its fields; ``where`` names it in errors.

    Raises:
        UserError: a kind of network that is not known.
    """
    found = {**record}
    name = found.pop("kind", "DiT")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{where} is of an unknown kind, {name!r}; {nearest(str(name), KINDS)}")
    return KINDS[name], found


def from_record(record: Mapping[str, Any]) -> NetworkConfig:
    """A configuration back from ``to_record``, through JSON or not.

    Raises:
        UserError: a kind of network that is not known.
        TypeError: fields it does not have.
    """
    config, found = of_record(record)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return config(**values)


def divisor(config: NetworkConfig) -> tuple[int, str]:
    """What rows and columns of a latent must be divisible by, and why in words: ``(2, "patch 2")``."""
    if isinstance(config, UNetConfig):
        return config.factor, f"the {config.factor} of a U-Net of {len(config.multipliers)} levels"
    return max(config.patch, 1), f"patch {config.patch}"  # a patch below 1 is refused by the network itself


def describe(config: NetworkConfig) -> str:
    """A configuration in one line: the network's kind, its size, and what else differs from the default."""
    said, plain = [], type(config)()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in SIZE or value != getattr(plain, field.name):
            shown = " ".join(f"{each:g}" for each in value) if isinstance(value, tuple) else value
            said.append(f"{field.name.replace('_', ' ')} {shown}")
    return f"{kind(config)}: {', '.join(said)}"


def on_meta(config: NetworkConfig, shape: NetworkInput) -> Network:
    """A network without memory, to count and measure.

    Raises:
        UserError: as ``build``.
    """
    with torch.device("meta"):
        return build(config, shape)


def numbers(module: nn.Module) -> int:
    """How many trained numbers a module has."""
    return sum(parameter.numel() for parameter in module.parameters())
