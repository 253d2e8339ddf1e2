"""Flags of other tools, and ditlab's own before version 0.2, by the flags that do the same here."""

from __future__ import annotations

from collections.abc import Collection

_EPOCHS = "--train.images (images in total: epochs times the size of the data)"
_STEPS = "--train.images (images in total: steps times --train.batch)"
_LAUNCH = "for several GPUs start torchrun --nproc-per-node N -m ditlab COMMAND"

# What to use, by the flags that others have for it. Each command takes the first flag that it has; what is no flag is
# advice for the commands without one.
_HINTS: dict[tuple[str, ...], str] = {
    # Training
    ("--train.lr",): "lr learning-rate base-lr train.rate train.learning-rate",
    ("--train.batch", "--batch"): "batch-size train-batch-size global-batch-size total-batch-size train.batch-size",
    ("--train.microbatch", "--microbatch"): "micro-batch-size per-device-train-batch-size train.part part",
    ("--train.microbatch (images at a time on a device, not a number of parts)",): "gradient-accumulation-steps accum-iter",
    ("--train.activation-checkpointing", "--activation-checkpointing"): (
        "gradient-checkpointing grad-checkpointing use-checkpoint train.recompute recompute"
    ),
    ("--train.max-grad-norm",): "max-grad-norm clip-grad grad-clip clip-grad-norm train.clip",
    ("--train.weight-decay",): "weight-decay adam-weight-decay",
    ("--train.beta2",): "beta2 adam-beta2",
    ("--train.ema",): "ema ema-decay ema-rate",
    (_EPOCHS, "--images"): "epochs num-epochs num-train-epochs max-epochs train.epochs",
    (_STEPS, "--images"): "max-steps max-train-steps num-train-steps total-steps iterations train.steps",
    ("--train.images (images, not thousands)",): "kimg total-kimg",
    ("--train.warmup (a share of the run)",): "warmup-steps lr-warmup-steps warmup-epochs",
    ("--train.precision", "--precision"): "mixed-precision dtype bf16 fp16 amp",
    ("--train.log (images between two rows)",): "log-every log-interval logging-steps",
    ("--train.checkpoint (images between two)",): "ckpt-every save-every save-steps checkpointing-steps",
    ("--train.keep-checkpoints",): "checkpoints-total-limit save-total-limit train.keep",
    ("--train.compile", "--compile"): "torch-compile",
    ("--autoencoder-train.lr",): "autoencoder-train.rate",
    ("--autoencoder-train.max-grad-norm",): "autoencoder-train.clip",
    ("--autoencoder-train.keep-checkpoints",): "autoencoder-train.keep",
    ("--autoencoder-train.microbatch",): "autoencoder-train.part",
    ("--data.path", "--path"): "data data-path data-dir dataset data-root train-data-dir",
    ("--data.size", "--image", "--size"): "resolution image-size img-size size",
    ("--data.flip",): "random-flip hflip",
    ("--autoencoder.path",): "vae vae-path pretrained-vae",
    ("--diffusion.condition-dropout",): "class-dropout-prob label-dropout uncond-prob diffusion.label-dropout",
    ("--jobs", "images are loaded in the background; no workers to set"): "workers num-workers",
    ("the same command resumes a run from its last checkpoint",): "resume resume-from resume-from-checkpoint auto-resume",
    ("--device",): "cuda gpu gpu-id use-cuda",
    ("--train.threads",): "threads num-threads cpu-threads",
    ("--gpus", _LAUNCH): "num-gpus n-gpus nproc-per-node num-processes devices",
    # Sampling
    ("--count", "--sample-images", "--images"): "num-images num-samples num-fid-samples num-images-per-prompt n-samples",
    ("--guidance", "--sample.guidance.scale"): "cfg cfg-scale guidance-scale scale guidance.scale",
    ("--steps", "--sample.steps", "--max-steps"): (
        "num-inference-steps num-sampling-steps num-steps sampling-steps ddim-steps steps"
    ),
    ("--sampler", "--sample.sampler"): "scheduler solver",
    ("--negative", "--sample.negative"): "negative-prompt negative-prompts uncond-prompt n-prompt",
    ("--prompts (a file, one prompt a line)",): "prompt-file prompts-file validation-prompts from-file",
    ("--text.kind", ): "text-encoder text-encoder-path encoder",
    ("--data.caption",): "caption-column caption-col caption-extension",
    ("--diffusion.shift",): "shift flow-shift timestep-shift",
    ("--labels",): "class classes class-labels class-ids label",
    ("--batch",): "per-proc-batch-size sample-batch-size together",
    ("--seed",): "global-seed random-seed manual-seed",
    ("--out", "the exported model is the second argument, without a flag"): (
        "output output-dir out-dir outdir results-dir sample-dir save-dir"
    ),
    ("--init", "the model is the first argument, without a flag"): (
        "ckpt ckpt-path checkpoint checkpoint-path model-path pretrained pretrained-model pretrained-model-name-or-path "
        "finetune fine-tune finetune-from init-from load-from warm-start"
    ),
    ("--network",): "feature-network",
    # Serving
    ("--host", ): "server-name address",
    ("--port", ): "server-port",
    ("--max-images", ): "images",
    ("--timeout", ): "seconds",
}  # fmt: skip

FAMILIAR = {f"--{name}": hints for hints, names in _HINTS.items() for name in names.split()}


def familiar_flag(flag: str, known: Collection[str]) -> str:
    """What to use in place of another tool's ``--flag``, by the ``known`` flags of the command; empty if unfamiliar."""
    for hint in FAMILIAR.get(flag, ()):
        if not hint.startswith("--"):
            return hint
        if hint.split()[0] in known:
            return f"use {hint}"
    return ""
