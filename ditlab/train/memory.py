"""GPU memory of training, counted with the real network and loss on the meta device: it needs no GPU and no memory.

All of it is computed. Not included: the allocator, CUDA itself, and workspace of kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ditlab.diffusion import DiffusionConfig, Positions
from ditlab.models import DiTConfig, Network, NetworkConfig, NetworkSpec
from ditlab.models.network import on_meta, parameter_count
from ditlab.train.config import TrainConfig

FLOAT32, BFLOAT16 = 4, 2  # bytes of a number
FORMAT = 1800  # bytes that torch.distributed.checkpoint adds to each tensor, its index included: measured


class OnGPU(TorchFunctionMode):
    """Treats tensors of the meta device as a GPU does: with its autocast and its fused attention.

    The meta device has neither, and the CPU's keep other tensors. Attention is the flash kernel in bfloat16 and the
    memory-efficient one in float32 or with a mask: they keep queries, keys, values, the result and one logarithm a row, never
    T x T scores.
    """

    # Of the lists of torch's ATen/autocast_mode.h, the functions that networks call.
    lower = (F.linear, F.conv2d, F.scaled_dot_product_attention)
    higher = (F.layer_norm, F.rms_norm, F.group_norm, F.interpolate)
    widest = (torch.addcmul,)

    def __init__(self, bf16: bool):
        super().__init__()
        self.bf16 = bf16
        self.copies: dict[int, Tensor] = {}  # that autocast made of weights, by the weight's identity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cast as autocast does, then call."""
        kwargs = kwargs or {}
        if self.bf16 and func in (*self.lower, *self.higher, *self.widest):
            args, kwargs = self._cast(func, (args, kwargs))
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")
        if mask is not None:
            bias = torch.where(mask, 0.0, -torch.inf).to(args[0].dtype).expand(*args[0].shape[:3], args[1].shape[2])
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, bias, True)[0]
        if args[0].dtype == torch.bfloat16:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return torch.ops.aten._scaled_dot_product_efficient_attention(*args, None, True)[0]

    def _cast(self, func: Any, arguments: Any) -> Any:
        found = {leaf.dtype for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
        lower = func in self.lower or (func in self.widest and torch.float32 not in found)
        dtype = torch.bfloat16 if lower else torch.float32

        def cast(tensor: Tensor) -> Tensor:
            if tensor.dtype not in (torch.float32, torch.bfloat16) or tensor.dtype == dtype:
                return tensor
            if not isinstance(tensor, nn.Parameter):
                return tensor.to(dtype)
            return self.copies.setdefault(id(tensor), tensor.to(dtype))  # autocast keeps one copy for the whole pass

        return tree_map_only(Tensor, cast, arguments)


@dataclass(frozen=True)
class Subject:
    """What is trained: a network, the shapes of its inputs and outputs, and the loss."""

    config: NetworkConfig
    shape: NetworkSpec
    diffusion: DiffusionConfig

    def network(self) -> Network:
        """The network on the meta device; UserError if the configuration is invalid."""
        return on_meta(self.config, self.shape)


@cache
def kept_bytes(subject: Subject, images: int, bf16: bool, recompute: bool = False) -> tuple[int, int]:
    """Bytes that a forward pass of network and loss keeps for the backward pass, on a GPU without torch.compile.

    Activations of ``images`` images, and the bfloat16 copies of weights, which do not depend on the number of images.
    With ``recompute``, activations are the inputs of each block and what one block keeps in the backward pass.
    """
    if not isinstance(subject.config, DiTConfig):
        activations, copies, _ = _kept(subject, images, bf16, recompute)
        return activations + (_kept(subject, images, bf16, False)[2] if recompute else 0), copies
    shallow = [replace(subject, config=replace(subject.config, depth=depth)) for depth in (1, 2)]
    one, two = (_kept(each, images, bf16, recompute) for each in shallow)
    more = subject.config.depth - 1  # blocks are equal: each of the others adds what the second adds
    activations, copies = one[0] + more * (two[0] - one[0]), one[1] + more * (two[1] - one[1])
    if recompute:
        first, both = (_kept(each, images, bf16, False)[0] for each in shallow)
        activations += both - first
    return activations, copies


def _kept(subject: Subject, images: int, bf16: bool, recompute: bool) -> tuple[int, int, int]:
    """Bytes of activations, of copies of weights, and of the activations of the block that keeps most."""
    network, loss = subject.network(), subject.diffusion.build_loss()
    network.activation_checkpointing = recompute
    latent = subject.shape.latent.shape
    drawn = loss.draw(Positions(0, 0, 1), latent)  # to know names and types
    draws = {name: value.to("meta").expand(images, *value.shape[1:]).clone() for name, value in drawn.items()}
    with torch.device("meta"):
        x0, condition = torch.empty(images, *latent), subject.shape.blank_condition(images)
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address comes twice
    owners: dict[int, nn.Module | None] = {}  # the block that a storage was first kept in
    running: list[nn.Module] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        owners.setdefault(storage._cdata, running[-1] if running else None)
        return tensor

    for block in network.block_list():
        block.register_forward_pre_hook(lambda module, _: running.append(module))
        block.register_forward_hook(lambda *_: running.clear())
    gpu = OnGPU(bf16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), gpu:
        loss.to("meta")(network, x0, condition, draws)
    copies = list(gpu.copies.values())
    for tensor in (*network.parameters(), *network.constants(), *loss.buffers(), *copies):
        storages.pop(tensor.untyped_storage()._cdata, None)
    kept = {key: storage.nbytes() for key, storage in storages.items()}
    shares = [sum(count for key, count in kept.items() if owners[key] is block) for block in network.block_list()]
    return sum(kept.values()), sum(copy.nbytes for copy in copies), max(shares)


@dataclass(frozen=True)
class Sharing:
    """What one way of sharing the work among GPUs takes of each."""

    memory: dict[str, int]  # bytes by use; not all are held at once, so the sum is an upper bound
    traffic: int  # bytes a GPU sends per step, in ring exchanges, which send the least


def checkpoint_bytes(network: nn.Module) -> int:
    """Bytes of a checkpoint: weight, average and two moments of every parameter, and AdamW's count of steps of each tensor."""
    count = len(list(network.parameters()))
    return FLOAT32 * (4 * parameter_count(network) + count) + 5 * FORMAT * count


def training_memory(subject: Subject, train: TrainConfig, gpus: int) -> dict[str, Sharing]:
    """What training takes of each of ``gpus`` GPUs: of ``one``, or with ``ddp`` and ``fsdp``.

    Microbatch 0 is all of a GPU's share at a time, precision auto is bf16. UserError if the batch does not divide.
    """
    train.check_processes(gpus)
    share, bf16 = train.batch // gpus, train.precision in ("auto", "bf16")
    microbatch = min(train.microbatch or share, share)
    network = subject.network()
    activations, copies = kept_bytes(subject, microbatch, bf16, train.activation_checkpointing)
    whole = parameter_count(network)
    blocks = [parameter_count(block) for block in network.block_list()]
    root, two = whole - sum(blocks), max(map(sum, pairwise(blocks)), default=2 * blocks[0])
    others = (gpus - 1) / gpus

    def permanent(count: int) -> dict[str, int]:
        names = {"weights": 1, "gradients": 1, "moments": 2, "average": 1}
        return {name: times * FLOAT32 * count for name, times in names.items()}

    memory = permanent(whole) | {"weights_bf16": copies, "activations": activations}
    copy = Sharing(memory, round(2 * others * FLOAT32 * whole))
    if gpus == 1:
        return {"one": copy}
    # A GPU holds unsharded, at a time, the root (all that is in no block), a block, and the block that is prefetched or
    # reduced. Of a U-Net's blocks, which differ, the two largest in a row. Gradients are unsharded in every microbatch.
    computed = BFLOAT16 if bf16 else FLOAT32
    shards = sum(ceil(parameter.shape[0] / gpus) * parameter[0].numel() for parameter in network.parameters())
    unsharded = (FLOAT32 + FLOAT32) * root + (computed + FLOAT32) * two  # weights and gradients
    memory = permanent(shards) | {"gathered": unsharded, "activations": activations}
    # In a step: blocks for the forward and the backward pass, the root once and in float32.
    gathered = 2 * computed * (whole - root) + FLOAT32 * root
    traffic = round(others * ceil(share / microbatch) * (gathered + FLOAT32 * whole))
    return {"ddp": copy, "fsdp": Sharing(memory, traffic)}
