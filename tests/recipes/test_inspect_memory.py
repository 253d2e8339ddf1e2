"""What `ditlab inspect` says of memory, against tensors that are really kept, shards that are really made, files on disk."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from specs import TEXT_BLOCKS, image_spec, spec_of_block
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_leaves

from ditlab.cli.main import COMMANDS
from ditlab.diffusion import DiffusionConfig, Positions
from ditlab.models import Condition, DiTConfig, LatentSpec, Network, NetworkSpec, TextConfig, UNetConfig, build, cost
from ditlab.models.blocks import AdaLNZeroBlock, BlockConfig
from ditlab.models.layout import Layout
from ditlab.recipes import find_recipe
from ditlab.runtime.distributed import Processes
from ditlab.train import DiffusionTask, TrainConfig
from ditlab.train.memory import Subject, checkpoint_bytes, kept_bytes, training_memory
from ditlab.train.parallel import shard

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = ("adaln-zero", "adaln", "cross-attention", "in-context")
PAPER = DiffusionConfig()
FLOW = DiffusionConfig(schedule="rectified-flow", target="velocity", learned_variance=False)


def subject(block: str = "adaln-zero", side: int = 24, diffusion: DiffusionConfig = PAPER, depth: int = 3) -> Subject:
    config = DiTConfig(depth=depth, width=48, heads=3, patch=1, block=block)  # type: ignore[arg-type]
    return Subject(config, spec_of_block(image_spec(4, side, side, 10, diffusion.learned_variance), block), diffusion)


def unet(design: str, diffusion: DiffusionConfig = PAPER) -> Subject:
    config = UNetConfig(width=16, multipliers=(1.0, 2.0, 3.0), head_width=8, design=design)  # type: ignore[arg-type]
    return Subject(config, image_spec(4, 8, 12, 10, diffusion.learned_variance), diffusion)


class Kept:
    """Sizes of the tensors that a real forward pass keeps for the backward pass, of parameters' none."""

    def __init__(self, *modules: nn.Module):
        self.own = {tensor.data_ptr() for each in modules for tensor in (*each.parameters(), *each.buffers())}
        self.storages: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for pointer, storage in self.storages.items() if pointer not in self.own)


def really_kept(of: Subject, images: int, bf16: bool, recompute: bool = False) -> int:
    network = build(of.config, of.shape).initialise(torch.Generator().manual_seed(0))
    network.activation_checkpointing = recompute
    loss = of.diffusion.build_loss()
    latent = of.shape.latent.shape
    draws = loss.draw(Positions(1, 0, images), latent)
    x0, condition = torch.randn(images, *latent), of.shape.blank_condition(images)
    kept = Kept(network, loss)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss(network, x0, condition, draws)
    return kept.bytes


@pytest.mark.parametrize("diffusion", [PAPER, FLOW], ids=["hybrid", "flow"])
@pytest.mark.parametrize("block", [*BLOCKS, *TEXT_BLOCKS])
def test_what_is_kept_in_float32_is_what_a_cpu_really_keeps(block: str, diffusion: DiffusionConfig):
    for images in (1, 4):
        counted, copies = kept_bytes(subject(block, 8, diffusion), images, bf16=False)
        # In-context attention is over 66 rows, whose logarithms a GPU keeps in multiples of 32. From joined queries a CPU's
        # attention returns another layout than a GPU's, and a joint block keeps a copy of its result.
        rel = 0.05 if block == "joint" else 5e-3
        assert counted == pytest.approx(really_kept(subject(block, 8, diffusion), images, bf16=False), rel=rel)
        assert copies == 0


@pytest.mark.parametrize("design", ["adm", "ldm"])
def test_what_a_unet_keeps_in_float32_is_what_a_cpu_really_keeps(design: str):
    for images in (1, 4):
        counted, copies = kept_bytes(unet(design), images, bf16=False)
        # Attention is over few pixels, whose logarithms a GPU keeps in multiples of 32.
        assert counted == pytest.approx(really_kept(unet(design), images, bf16=False), rel=1e-2)
        assert copies == 0


@pytest.mark.parametrize("block", ["adaln-zero", "adaln", "in-context"])
def test_what_is_kept_in_bfloat16_is_what_a_cpu_really_keeps_but_for_the_gated_sums(block: str):
    # 576 tokens: beyond 512 a CPU too runs the fused attention. Its autocast leaves a gated sum's input in bfloat16, where a
    # GPU's keeps a float32 copy: two more bytes for each of two sums a block. (Cross-attention, to two tokens, is written out.)
    of = subject(block)
    counted, copies = kept_bytes(of, 2, bf16=True)
    wider = 2 * 2 * 3 * 2 * 576 * 48 if block == "adaln-zero" else 0
    assert counted + copies - wider == pytest.approx(really_kept(of, 2, bf16=True), rel=5e-3)


def test_a_block_in_bfloat16_keeps_what_paper_and_pencil_say():
    def block(images: int) -> int:
        return kept_bytes(subject(depth=3), images, True)[0] - kept_bytes(subject(depth=2), images, True)[0]

    tokens, width, heads = 576, 48, 3
    attention = 4 + 4 + 2 + 6 + 2 + 4  # what enters, its norm; in bf16 the qkv input, q k v, result; projected, float32
    mlp = 4 + 4 + 2 + 8 + 8 + 4  # the same; in bf16 the input of each Linear and of GELU; the output, float32
    rows = 4 * heads + 2 * 2 * 4  # a logarithm a head; mean and deviation of two norms
    vectors = 2 + 2 * (4 + 4)  # into the modulation; scale and gate, twice
    assert block(6) - block(5) == tokens * width * (attention + mlp) + tokens * rows + vectors * width


def test_copies_in_bfloat16_are_of_every_linear_and_of_nothing_else():
    of = subject("cross-attention")
    linears = [module for module in build(of.config, of.shape).modules() if isinstance(module, nn.Linear)]
    numbers = sum(parameter.numel() for linear in linears for parameter in linear.parameters())
    assert kept_bytes(of, 1, bf16=True)[1] == 2 * numbers == kept_bytes(of, 5, bf16=True)[1]


class Calls(TorchFunctionMode):
    """The types of the floating-point tensors that each function was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, list[set[torch.dtype]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        found = {tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype != torch.float64}
        self.types.setdefault(getattr(func, "__name__", str(func)), []).append(found)
        return func(*args, **(kwargs or {}))


def listed(name: str) -> set[str]:
    """The functions of one of autocast's lists, as the header that comes with torch has them."""
    header = (Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h").read_text()
    macro = header.split(f"#define AT_FORALL_{name}(_)")[1].split("\n\n")[0]
    return set(re.findall(r"_\((\w+)", macro))


@pytest.mark.parametrize("block", BLOCKS)
def test_every_function_is_called_with_the_types_that_a_gpus_autocast_gives_it(block: str):
    calls = Calls()
    with calls:
        kept_bytes.__wrapped__(subject(block), 2, bf16=True)
    lower, higher, widest = listed("LOWER_PRECISION_FP"), listed("FP32"), listed("PROMOTE")
    expected = {"linear", "layer_norm"} | ({"addcmul"} if block.startswith("adaln") else set())
    assert expected <= set(calls.types) & (lower | higher | widest)
    for name, called in calls.types.items():
        for types in called:
            if name in lower:
                assert types == {torch.bfloat16}, name
            elif name in higher:
                assert types <= {torch.float32}, name
            elif name in widest:
                assert len(types) == 1, name


@pytest.mark.parametrize("design", ["adm", "ldm"])
def test_every_function_of_a_unet_is_called_with_the_types_that_a_gpus_autocast_gives_it(design: str):
    calls = Calls()
    with calls:
        kept_bytes.__wrapped__(unet(design), 2, bf16=True)
    named = {"interpolate": "upsample_nearest2d"}  # what autocast knows this one as
    types = {named.get(name, name): found for name, found in calls.types.items()}
    lower, higher, widest = listed("LOWER_PRECISION_FP"), listed("FP32"), listed("PROMOTE")
    assert {"linear", "conv2d", "group_norm", "upsample_nearest2d"} <= set(types) & (lower | higher | widest)
    for name, called in types.items():
        for found in called:
            if name in lower:
                assert found == {torch.bfloat16}, name
            elif name in higher:
                assert found <= {torch.float32}, name
            elif name in widest:
                assert len(found) == 1, name


@pytest.mark.parametrize("design", ["adm", "ldm"])
def test_a_unet_that_computes_again_keeps_what_enters_its_blocks_and_the_largest_block(design: str):
    of = unet(design, FLOW)
    entered: list[tuple[nn.Module, tuple[Tensor, ...]]] = []
    network = build(of.config, of.shape)
    for block in network.block_list():
        block.register_forward_pre_hook(lambda module, inputs: entered.append((module, inputs)))
    latent = of.shape.latent.shape
    network(torch.randn(4, *latent), torch.zeros(4), Condition.of_labels(torch.arange(4)))
    largest = 0
    for block, inputs in list(entered):
        own = Kept(block)
        own.own |= {tensor.data_ptr() for tensor in inputs if tensor is not None}
        with torch.autograd.graph.saved_tensors_hooks(own.keep, lambda tensor: tensor):
            block(*inputs)
        largest = max(largest, own.bytes)
    counted, _ = kept_bytes(of, 4, bf16=False, recompute=True)
    assert counted == pytest.approx(really_kept(of, 4, bf16=False, recompute=True) + largest, rel=2e-2)
    assert counted < 0.6 * kept_bytes(of, 4, bf16=False)[0]


def test_recompute_keeps_what_enters_the_blocks_and_one_block():
    of = subject(side=8)
    counted, _ = kept_bytes(of, 4, bf16=False, recompute=True)
    block = AdaLNZeroBlock(BlockConfig(width=48, heads=3))
    kept = Kept(block)
    x, c = torch.randn(4, 64, 48, requires_grad=True), torch.randn(4, 1, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        block(x, None, c, Layout(torch.zeros(64, 48)))
    assert counted == pytest.approx(really_kept(of, 4, bf16=False, recompute=True) + kept.bytes, rel=5e-3)
    assert counted < 0.6 * kept_bytes(of, 4, bf16=False)[0]


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own, compiling
def test_a_compiled_block_keeps_less():
    def kept(block: Any, own: nn.Module) -> float:
        x, c = torch.randn(1, 1024, 96, requires_grad=True), torch.randn(1, 1, 96, requires_grad=True)
        layout = Layout(torch.zeros(1024, 96))
        with torch.autocast("cpu", torch.bfloat16):
            block(x, None, c, layout)  # compiled now
            found = Kept(own)
            with torch.autograd.graph.saved_tensors_hooks(found.keep, lambda tensor: tensor):
                block(x, None, c, layout)
        copies = sum(2 * weight.numel() for weight in own.parameters() if weight.ndim == 2)
        return (found.bytes - copies) / (1024 * 96)

    block = AdaLNZeroBlock(BlockConfig(width=96, heads=2))
    compiled = torch.compile(block, backend="aot_eager_decomp_partition")
    assert kept(block, block) == pytest.approx(48, abs=0.5)  # a byte count of docs/scale.md, less the gated sums' 4
    assert kept(compiled, block) == pytest.approx(36, abs=0.5)


class Blocks(DiffusionTask):
    """An objective that only knows what to shard."""

    def __init__(self, network: Network):
        self.module = network


@pytest.fixture
def eight() -> Iterator[Processes]:
    """This process as the first of eight that exchange nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield Processes(0, 8)
    dist.destroy_process_group()


def test_shards_are_those_that_are_really_made(eight: Processes):
    of, train = subject(side=8), TrainConfig(batch=16, parallel="fsdp")
    network = build(of.config, of.shape)
    shard(network, Blocks(network), train, eight, torch.device("cpu"))
    local = [parameter.to_local().numel() for parameter in network.parameters() if isinstance(parameter, DTensor)]
    memory = training_memory(of, train, 8)["fsdp"].memory
    assert len(local) == len(list(network.parameters()))
    assert memory["weights"] == memory["gradients"] == memory["average"] == 4 * sum(local)
    assert memory["moments"] == 8 * sum(local)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # nothing is done to it in place
def test_the_root_and_no_more_than_two_blocks_are_gathered_at_a_time(eight: Processes):
    of, train = subject(side=8, depth=4), TrainConfig(batch=16, parallel="fsdp", precision="bf16")
    network = build(of.config, of.shape).initialise(torch.Generator().manual_seed(0))
    shard(network, Blocks(network), train, eight, torch.device("cpu"))
    units: dict[str, Any] = {
        name: module._get_fsdp_state()._fsdp_param_group
        for name, module in network.named_modules()
        if isinstance(module, FSDPModule)
    }
    gathered: list[set[str]] = []

    def look(*_: object) -> None:
        gathered.append(
            {name for name, unit in units.items() if unit.is_unsharded or unit._all_gather_result is not None}
        )

    for block in network.block_list():
        mlp = block.get_submodule("mlp")
        mlp.register_forward_hook(look)
        mlp.register_full_backward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(2, 4, 8, 8), torch.zeros(2), Condition.of_labels(torch.arange(2)))
    out.sum().backward()
    assert len(gathered) == 8
    assert max(map(len, gathered)) == 3
    assert all("" in names for names in gathered)
    locked = [each.unsharded_accumulated_grad for unit in units.values() for each in unit.fsdp_params]
    assert all(gradient is None for gradient in locked)

    numbers = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    block = numbers["blocks"] // 4
    several = (2 + 4) * 2 * block + (4 + 4) * (sum(numbers.values()) - numbers["blocks"])
    assert training_memory(of, train, 8)["fsdp"].memory["gathered"] == several
    in_parts = training_memory(of, replace(train, microbatch=1), 8)["fsdp"].memory
    assert in_parts["gathered"] == several


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")  # nothing is done to it in place
@pytest.mark.parametrize("design", ["adm", "ldm"])
def test_a_unet_is_sharded_block_by_block_and_gathered_by_two(design: str, eight: Processes):
    of, train = unet(design), TrainConfig(batch=16, parallel="fsdp", precision="bf16")
    network = build(of.config, of.shape).initialise(torch.Generator().manual_seed(0))
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in network.block_list()]
    root = sum(parameter.numel() for parameter in network.parameters()) - sum(sizes)
    shard(network, Blocks(network), train, eight, torch.device("cpu"))
    assert sum(isinstance(module, FSDPModule) for module in network.modules()) == len(sizes) + 1
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(2, 4, 8, 12), torch.zeros(2), Condition.of_labels(torch.arange(2)))
    out.sum().backward()
    local = [parameter.to_local().numel() for parameter in network.parameters() if isinstance(parameter, DTensor)]
    memory = training_memory(of, train, 8)["fsdp"].memory
    assert memory["weights"] == 4 * sum(local)
    two = max(sizes[k] + sizes[k + 1] for k in range(len(sizes) - 1))
    assert memory["gathered"] == (4 + 4) * root + (2 + 4) * two


def test_state_of_one_gpu_and_of_a_copy_each_is_twenty_bytes_a_parameter():
    of = subject(side=8)
    numbers = sum(parameter.numel() for parameter in build(of.config, of.shape).parameters())
    one = training_memory(of, TrainConfig(batch=8), 1)
    two = training_memory(of, TrainConfig(batch=8), 2)
    assert list(one) == ["one"]
    for sharing in (one["one"], two["ddp"]):
        memory = sharing.memory
        assert memory["weights"] + memory["gradients"] + memory["moments"] + memory["average"] == 20 * numbers
    assert two["ddp"].memory["activations"] == kept_bytes(of, 4, bf16=True)[0]
    assert one["one"].memory["activations"] == kept_bytes(of, 8, bf16=True)[0]
    assert (one["one"].traffic, two["ddp"].traffic) == (0, 4 * numbers)


def test_a_checkpoint_is_as_large_on_disk_as_is_said(digits_run: Path, ditlab):
    folder = digits_run / "checkpoints" / "000000000640"
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    said = json.loads(ditlab("inspect", digits_run, "--json").out)["training"]["checkpoint_bytes"]
    assert said == pytest.approx(on_disk, rel=0.02)
    xl = Subject(DiTConfig.named("XL/2"), image_spec(4, 32, 32, 1000, True), PAPER)
    assert checkpoint_bytes(xl.network()) == pytest.approx(16 * 674_834_720, rel=1e-3)


def test_a_recipe_that_drops_no_labels_has_no_row_for_no_class(tmp_path: Path, ditlab):
    recipe, _ = find_recipe("digits")
    path = tmp_path / "recipe.json"
    path.write_text(replace(recipe, diffusion=replace(recipe.diffusion, condition_dropout=0.0)).to_json())
    with_null, without = (json.loads(ditlab("inspect", each, "--json").out)["parameters"] for each in ("digits", path))
    assert with_null - without == recipe.model.width


def test_inspect_prints_memory_by_what_it_is_for(ditlab):
    ended = ditlab("inspect", "DiT-S/2", "--gpus", "8")
    assert (ended.code, ended.err) == (0, "")
    for words in ("DDP", "FSDP2", "computed", "AdamW's two moments", "bfloat16 copies", "32 images at a time", "GB"):
        assert words in " ".join(ended.out.split())
    alone = ditlab("inspect", "DiT-S/2", "--microbatch", "16", "--precision", "fp32", "--activation-checkpointing").out
    alone = " ".join(alone.split())
    for words in ("one GPU", "16 images at a time", "activation checkpointing"):
        assert words in alone
    assert "bfloat16 copies" not in alone
    assert "FSDP2" not in alone


def test_a_published_model_of_text_is_counted_with_its_tokens(ditlab, refused):
    found = json.loads(ditlab("inspect", "DiT-S/8", "--block", "joint", "--text", 11, "--json").out)
    spec = NetworkSpec(LatentSpec(4, (32, 32)), (TextConfig(features=384, tokens=11),), learned_variance=True)
    expected = cost(DiTConfig.named("S/8", block="joint"), spec)
    assert (found["parameters"], found["gmacs"]) == (expected.total_parameters, expected.gmacs)
    assert found["parts"]["blocks: text-mlp"]["gmacs"] == expected.macs["blocks: text-mlp"] / 1e9
    assert "paper" not in found
    refused(["inspect", "ADM-128", "--text", "11"], "ADM-128 is a U-Net", "--text 11")
    refused(["inspect", "DiT-S/8", "--text", "-1"], "--text -1 must be 0 or more")


def test_a_mistake_of_memory_flags_is_one_line(refused):
    refused(["inspect", "DiT-S/2", "--gpus", "3"], "256", "3 processes", "255 or 258")
    refused(["inspect", "DiT-S/2", "--gpus", "0"], "--gpus 0")
    refused(["inspect", "DiT-S/2", "--batch", "-1"], "--batch -1")
    refused(["inspect", "DiT-S/2", "--microbatch", "-1"], "--microbatch -1")
    refused(["inspect", "DiT-S/2", "--precision", "fp8"], "'fp8'", "bf16")


PAGE = ROOT / "docs" / "scale.md"


def table(header: str) -> list[list[str]]:
    """The rows of the page's table whose header begins so, the two of the header left out."""
    lines = PAGE.read_text().split(header)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def training(ditlab) -> Any:
    """What the command says of training a model."""

    def log(model: str, *flags: object) -> dict[str, Any]:
        name, _, image = model.partition(", ")
        return json.loads(ditlab("inspect", name, "--image", image or 256, *flags, "--json").out)["training"]

    return log


@pytest.mark.parametrize("recompute", [False, True])
def test_the_pages_memory_is_what_the_command_says(recompute: bool, training):
    rows = table("| model, activation checkpointing |" if recompute else "| model | MiB per image")
    assert len(rows) == 5
    for model, *cells in rows:
        said = []
        for gpus in (1, 8, 64):
            flags = ["--batch", 256, "--gpus", gpus, *(["--activation-checkpointing"] if recompute else [])]
            found = training(model, *flags)
            said += [f"{sum(memory.values()) / 2**30:.1f}" for memory in found["memory_bytes_a_gpu"].values()]
            image = [
                f"{found['activation_bytes_an_image'][key] / 2**20:.0f}" for key in ("all", "activation_checkpointing")
            ]
        assert cells == (said if recompute else [*image, *said]), model


def test_the_pages_compute_is_that_of_the_models(training):
    rows = table("| model | images |")
    assert len(rows) == 6
    for model, images, *cells in rows:
        flops = training(model)["flops_an_image"]
        speeds = [mfu * 989e12 / flops for mfu in (0.25, 0.5, 0.6)]
        hours = [int(images.replace(",", "")) / speed / 3600 for speed in speeds]
        assert cells == [f"{flops / 1e9:.1f}", *(f"{number:,.0f}" for number in [*speeds, *hours])]


def test_the_pages_checkpoints_and_exchange_are_what_the_command_says(training):
    for model, *cells in table("| model | GB | s at"):
        size = training(model)["checkpoint_bytes"] / 1e9
        assert cells == [f"{size:.2f}", *(f"{size / rate:.1f}" for rate in (0.5, 2, 10))]
    eight, many = (training("DiT-XL/2", "--gpus", gpus) for gpus in (8, 64))
    ddp, fsdp, nvlink, machine, compute = (cells for _, *cells in table("| DiT-XL/2, 256 | 8 GPUs"))
    sent = [found["traffic_bytes_a_step"]["ddp"] for found in (eight, many)]
    assert ddp == [f"{traffic / 1e9:.2f}" for traffic in sent]
    assert fsdp == [f"{found['traffic_bytes_a_step']['fsdp'] / 1e9:.2f}" for found in (eight, many)]
    assert nvlink == [f"{1e3 * traffic / 450e9:.1f}" for traffic in sent]
    assert machine[1] == f"{1e3 * sent[1] / 400e9:.1f}"
    assert compute == [f"{1e3 * 256 / gpus * eight['flops_an_image'] / (0.5 * 989e12):.1f}" for gpus in (8, 64)]


def test_the_pages_launches_are_ones_that_torchrun_and_ditlab_take(ditlab):
    from torch.distributed.run import get_args_parser

    lines = re.findall(r"^(?:TORCH\w+=1 )?(torchrun .*)$", PAGE.read_text().replace("\\\n", ""), flags=re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        given = get_args_parser().parse_args(shlex.split(line)[1:])
        assert (given.module, given.training_script) == (True, "ditlab")
        command, name, *rest = given.training_script_args
        shown = ditlab(command, *([name] if command in ("train", "encode") else []), "--help").out
        assert command in COMMANDS
        assert all(word in shown for word in rest if word.startswith("--")), line
