"""The training step."""

from __future__ import annotations

import torch
from torch import Tensor

from ditlab.errors import UserError
from ditlab.runtime.device import check_compiler
from ditlab.runtime.distributed import Processes
from ditlab.train.config import TrainConfig
from ditlab.train.ema import EMA
from ditlab.train.meter import MetricAverager
from ditlab.train.microbatch import largest_microbatch
from ditlab.train.parallel import Parallel, gradient_norm, local, shard
from ditlab.train.profile import Profile
from ditlab.train.task import Task

MOST_SKIPPED = 20  # consecutive steps with a NaN or infinite loss or gradient, after which the run ends


class Trainer:
    """What a training step changes: weights, average, optimiser, metrics; ``microbatch`` 0 finds what fits in memory."""

    def __init__(
        self, task: Task, config: TrainConfig, processes: Processes, device: torch.device, microbatch: int = 0
    ):
        self.task, self.config, self.processes, self.device = task, config, processes, device
        task.to(device)
        module = task.module.train()
        if config.activation_checkpointing:
            task.activation_checkpointing()
        if config.compiles_on(device):
            check_compiler(device, "--train.compile off")
        # The smallest of all processes: with shards, a process with one more microbatch would wait for the others forever.
        self.microbatch = microbatch or processes.all_reduce_min(largest_microbatch(task, config, device, processes))
        self.ema = EMA(module, config.ema, config.ema_warmup)
        if config.compiles_on(device):  # not the average, which samples at other shapes
            for part in task.parts(module):
                part.compile()
        if config.shards(processes.size):
            for each in (module, self.ema.module):
                shard(each, task, config, processes, device)
        self.parallel = Parallel(task, config, processes, device)
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        self.metrics = MetricAverager(device)

    def step(self, step: int, batch: dict[str, Tensor], draws: dict[str, Tensor], profile: Profile) -> None:
        """Train on this process's images of a batch and their draws, without waiting for the device; step 0 is the first.

        If the loss or the gradient is NaN or infinite, weights and optimiser keep their state and the step is counted.
        """
        with profile.phase("forward and backward"):
            losses = self.parallel.backward(batch, draws, self.microbatch)
        with profile.phase("optimiser"):
            norm = gradient_norm(self.parameters)
            finite = norm.isfinite() & self.parallel.all_true(losses.isfinite().all())
            if self.config.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.lr_at(step)
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined] # 1: the fused kernel changes nothing
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        with profile.phase("EMA"):
            self.ema.update(step)
        self.metrics.add(losses, draws.get("t"), finite)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name: the tensors themselves, so that reading into them restores the run.

        Not cached, since FSDP may move parameters to other storage.
        """
        module = self.task.module
        tensors = {f"weights.{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            state = self.optimiser.state[parameter]
            if not state:  # AdamW's own initial state
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            tensors |= {f"optimiser.{name}.{key}": value for key, value in state.items()}
        return tensors

    def check(self, saving: bool) -> None:
        """Raise UserError if training diverged: too many skipped steps, or, before a checkpoint, NaN or infinite weights."""
        what, (total, _, longest) = "", self.metrics.skipped.tolist()
        if longest >= MOST_SKIPPED:
            what = f"{total} steps had a NaN or infinite loss or gradient, {longest} of them in a row"
        elif saving:
            bad = torch.stack([~local(tensor).isfinite().all() for tensor in self.tensors.values()]).any()
            what = "a weight is NaN or infinite" if self.processes.all_reduce_sum(bad.long()) else ""
        if what:
            raise UserError(
                f"{what}; earlier checkpoints are intact: try a lower --train.lr (now {self.config.lr:g}), "
                "--train.warmup 0.05, --train.max-grad-norm 1 or --train.precision fp32, with another --out"
            )
