"""The command line: ``ditlab COMMAND ...``. Errors a user can fix are one line and exit code 2."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ditlab import __version__
from ditlab.cli.completion import completion
from ditlab.cli.convert import export, import_, push
from ditlab.cli.data import data
from ditlab.cli.demo import demo
from ditlab.cli.evaluate import evaluate
from ditlab.cli.inspect import inspect
from ditlab.cli.play import play
from ditlab.cli.sample import sample
from ditlab.cli.study import study
from ditlab.cli.train import autoencoder, encode, train
from ditlab.errors import Stopped, UserError, nearest
from ditlab.runtime.console import log, log_nothing
from ditlab.runtime.device import keep_memory

# Not tyro's SubcommandApp: it builds the parsers of all commands before it reads the first word, and which flags `train`
# has depends on the recipe and the network, whose import takes PyTorch.
COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "data": data, "train": train, "autoencoder": autoencoder, "encode": encode, "sample": sample, "evaluate": evaluate,
    "study": study, "play": play, "inspect": inspect, "import": import_, "export": export, "push": push, "demo": demo,
    "completion": completion,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or with 2 after a one-line error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if words and words[0] in ("version", "--version", "-V"):
        log(f"ditlab {__version__}")
        return
    if not words or words[0] in ("-h", "--help"):
        log("ditlab: train, sample, measure and study diffusion transformers\n")
        for name, function in COMMANDS.items():
            log(f"  ditlab {name:12s} {(function.__doc__ or '').splitlines()[0]}")
        log("\n`ditlab help COMMAND` lists the flags of a command, `ditlab version` prints the version.")
        raise SystemExit(0 if words else 2)
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}; {nearest(words[0], [*COMMANDS, 'help', 'version'])}")
        COMMANDS[words[0]](words[1:])
    except UserError as error:
        who = f" [process {rank}]" if (rank := os.environ.get("RANK", "0")) != "0" else ""
        print(f"ditlab:{who} {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stop:
        (log if os.environ.get("RANK", "0") == "0" else log_nothing)(str(stop))
    except BrokenPipeError:  # the reader of a pipe is gone, as after `--help | head`; `log` handles it in long commands
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - Python flushes it as it ends
    except KeyboardInterrupt:
        print(_stopped(words), file=sys.stderr)
        raise SystemExit(130) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, by name: commands that fail early do not import torch
            raise
        remedy = "a smaller --train.microbatch, --train.activation-checkpointing, or a smaller --batch when sampling"
        print(f"ditlab: out of memory on the GPU; try {remedy}", file=sys.stderr)
        raise SystemExit(2) from None


def run() -> None:
    """The program's entry point: ``main``, after which Ctrl-C is ignored.

    Python takes a while to exit with torch loaded, and an interrupt then would turn finished work into a failure. SIGTERM
    ends a command as Ctrl-C does, except that training saves a checkpoint and `play` finishes its requests.
    """

    def stop(number: int, _: object) -> None:
        # Not an exception: raised inside torch's threads it aborts the process. Files are complete at every moment.
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"{show_cursor}{_stopped(sys.argv[1:])}\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    keep_memory()
    try:
        main()
        if "ditlab.runtime.distributed" in sys.modules:
            sys.modules["ditlab.runtime.distributed"].leave()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stopped(words: Sequence[str]) -> str:
    resumes = words[:1] and words[0] in ("train", "autoencoder", "encode", "study", "demo")
    return f"ditlab: stopped{'; the same command resumes from the last checkpoint' if resumes else ''}"
