"""Models on the Hugging Face hub: the two files of a model, and a model card."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ditlab.errors import UserError
from ditlab.models import cost
from ditlab.models.network import describe
from ditlab.pipelines import Pipeline
from ditlab.pipelines.model_file import RECORD, WEIGHTS
from ditlab.runtime.console import markdown_table

CARD = "README.md"
PICTURE = re.compile(r"!\[[^\]]*\]\(([\w./-]+)\)")  # in Markdown; the group is its file
# Of a model of ditlab, of a pipeline of diffusers, or of its transformer alone; then of those without safetensors.
FILES = (RECORD, WEIGHTS, "model_index.json", "config.json", "diffusion_pytorch_model*.safetensors", "*.index*.json")
FILES = (*FILES, "*/*.json", "*/*.safetensors")
PICKLED = ("*/*.bin", "diffusion_pytorch_model*.bin")


def push(run: Path, name: str, private: bool = False) -> str:
    """Upload the model of a run folder or ``model.safetensors`` with its card to ``user/name``; returns its URL.

    The repository is created if it is missing. UserError: model or account are missing, or the hub cannot be reached.
    """
    hub, model = _hub(), Pipeline.load(run)
    folder = run.parent if run.suffix == ".safetensors" else run
    with tempfile.TemporaryDirectory() as temporary:
        content = Path(temporary)
        model.save(content)
        (content / CARD).write_text(card(model, name, folder))
        for picture in (picture for _, pictures in _pages(folder) for picture in pictures):
            if (folder / picture).is_file():
                (content / picture).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / picture, content / picture)
        try:
            api = hub.HfApi()
            api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=content, commit_message="Upload a model with ditlab")
        except Exception as error:
            raise UserError(
                f"cannot push to {name} ({_first_line(error)}); log in with `hf auth login`, and use a name USER/NAME"
            ) from error
    return f"https://huggingface.co/{name}"


def download(name: str) -> Path:
    """The folder of a model in the hub's cache, downloaded if it is not there. UserError: it cannot be downloaded."""
    hub = _hub()
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(FILES)))
        if any(folder.rglob("*.safetensors")):
            return folder
        return Path(hub.snapshot_download(name, allow_patterns=[*FILES, *PICKLED]))
    except Exception as error:
        raise UserError(
            f"{name} is not a local folder and cannot be downloaded from the hub ({_first_line(error)}); give a run folder, or "
            "USER/NAME of a model on the hub"
        ) from error


def card(model: Pipeline, name: str, folder: Path) -> str:
    """The model card in Markdown: images, network, usage, then the reports of training and evaluation of a run folder."""
    config, spec = model.network.config, model.network.spec
    counted, (channels, height, width) = cost(config, spec), model.pixels
    rows = {
        "images": f"{channels}x{height}x{width}",
        "classes": f"{model.classes}: {', '.join(model.names[:20])}{', ...' if len(model.names) > 20 else ''}",
        "network": f"{describe(config)}; {counted.total_parameters:,} parameters, {counted.gmacs:.4g} GMACs",
        "latents": "x".join(map(str, spec.latent.shape)),
        "diffusion": f"{model.diffusion.schedule}, predicts {model.diffusion.target}",
        **{str(fact): str(value) for fact, value in model.facts.items()},
    }
    usage = f'images = ditlab.load("{name}").sample(count=16, seed=0)  # uint8 (N, H, W, C)'
    lines = ["---", "library_name: ditlab", "pipeline_tag: unconditional-image-generation", "---", ""]
    lines += [f"# {name.rpartition('/')[2]}", "", "A diffusion transformer, trained with ditlab.", ""]
    lines += ["```python", "import ditlab", "", usage, "```", "", *markdown_table(("", ""), rows.items())]
    for text, _ in _pages(folder):
        lines += [re.sub(r"^#", "##", text, flags=re.MULTILINE), ""]
    return "\n".join(lines)


def _pages(folder: Path) -> list[tuple[str, list[str]]]:
    """The reports of a run: their text, and the paths of their pictures relative to the folder."""
    pages = []
    for part in (Path(), Path("evaluation")):
        if (folder / part / "report.md").is_file():
            text = (folder / part / "report.md").read_text()
            text = PICTURE.sub(lambda found, part=part: found[0].replace(found[1], (part / found[1]).as_posix()), text)
            pages.append((text, PICTURE.findall(text)))
    return pages


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("the hub needs huggingface_hub: pip install 'ditlab[hub]'") from error
    return huggingface_hub
