"""Fine-tuning: a recipe, an autoencoder and weights that come from a trained model (``init``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from ditlab.encoders import TextEncoderConfig, record
from ditlab.errors import UserError
from ditlab.interop.find import find_model
from ditlab.models import TextConfig
from ditlab.models.network import describe
from ditlab.pipelines import Pipeline
from ditlab.pipelines.labels import matching_labels
from ditlab.recipes.recipe import Recipe
from ditlab.train.checkpoint import existing

Log = Callable[[str], None]
TABLE = "condition_embedding.labels.table.weight"  # ends the names of label tables
WORDS = "condition_embedding.text.table.weight"  # a row for each word of the captions
LISTED = 5  # class names in a line


def fine_tuning(recipe: Recipe, name: str, open_size: bool = False) -> Recipe:
    """A recipe that fine-tunes the model ``name``: with its network, process, autoencoder, text encoder and sampling.

    ``open_size``: the images take the model's size where the recipe leaves theirs open. UserError: no such model.
    """
    model = find_model(name)
    spec = model.network.spec
    data = replace(recipe.data, size=model.size) if open_size and not recipe.data.size else recipe.data
    return replace(
        recipe,
        init=resolved(name),
        data=data,
        autoencoder=model.autoencoder.to_config(),
        text=_text_config(model, recipe.text),
        model=model.network.config.fine_tuned(spec),
        diffusion=model.diffusion,
        sample=model.defaults,
    )


def _text_config(model: Pipeline, given: TextEncoderConfig) -> TextEncoderConfig:
    """The configuration of a model's text encoder; the given one for a model of labels."""
    if model.text is None:
        return given
    record = model.text.record()
    names = {item.name for item in fields(TextEncoderConfig)}
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items() if name in names}
    frozen = any(isinstance(each, TextConfig) and each.frozen for each in model.network.spec.conditions)
    return TextEncoderConfig(**{**known, "frozen": frozen, "cache": given.cache})


def resolved(name: str) -> str:
    """The name of a model, valid in any working directory."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def source_name(init: str) -> str:
    """The name of the model that a run was fine-tuned from, without the folders above it."""
    return Path(init).name if Path(init).is_absolute() else init


def copy_autoencoder(recipe: Recipe, folder: Path, run: Path, channels: int, log: Log) -> None:
    """Before the first step, store the autoencoder of the model to fine-tune in ``folder``, if it is the recipe's.

    It is not where the recipe configures another one or the images have other channels, which is logged.
    """
    if existing(run / "checkpoints") or (folder / "recipe.json").exists():
        return
    autoencoder = find_model(recipe.init).autoencoder
    same = replace(autoencoder.to_config(), kl_weight=recipe.autoencoder.kl_weight) == recipe.autoencoder
    if same and autoencoder.channels == channels:
        record.save(autoencoder, folder)
        log(f"autoencoder: that of {recipe.init}")
        return
    why = f"is for {autoencoder.channels} image channels, the images have {channels}" if same else "is another one"
    (folder / record.RECORD).unlink(missing_ok=True)  # of an earlier start with other images
    log(f"autoencoder: a new one, since that of {recipe.init} {why}")


def load_weights(recipe: Recipe, model: Pipeline, log: Log) -> None:
    """Load the weights of the recipe's ``init`` into a new model, and log which were kept and which are new.

    A module keeps its weights if all of its shapes are the same; the label table keeps the rows of classes of the same name,
    and other classes start as the null class. The table of words keeps the rows of the same words, others start at random.
    UserError: no block fits.
    """
    source = find_model(recipe.init)
    theirs, ours = source.network.state_dict(), model.network.state_dict()
    fitting = _fitting(theirs, ours)
    blocks = {id(parameter) for block in model.network.block_list() for parameter in block.parameters()}
    if not any(name in fitting and id(parameter) in blocks for name, parameter in model.network.named_parameters()):
        raise UserError(
            f"--init {recipe.init} has no weights that fit: it is {describe(source.network.config)}, the recipe has "
            f"{describe(recipe.model)}"
        )
    loaded = {name: theirs[name] for name in fitting if not name.endswith((TABLE, WORDS))}
    tables = [
        name
        for name in ours
        if name.endswith(TABLE) and name in theirs and ours[name].shape[1] == theirs[name].shape[1]
    ]
    sources, fresh = _sources(source, model)
    merged = {name: _table(theirs[name], len(ours[name]), sources, source.classes) for name in tables}
    new = [f"label table ({_listed(fresh, model.classes)})"] if fresh and tables else []
    if WORDS in ours and WORDS in theirs and ours[WORDS].shape[1] == theirs[WORDS].shape[1]:
        (fresh, count), merged[WORDS] = _word_rows(source, model, ours[WORDS], theirs[WORDS])
        new += [f"table of words ({_listed(fresh, count, 'words')})"] if fresh else []
    model.network.load_state_dict({**ours, **loaded, **merged})
    new += _parts(model, sorted(ours.keys() - loaded.keys() - merged.keys()))
    loaded |= {} if fresh else merged
    unused = len(theirs.keys() - loaded.keys() - merged.keys())
    log(
        f"init {recipe.init}: kept {len(loaded)} of {len(ours)} tensors"
        + (f"; new: {', '.join(new)}" if new else "")
        + (f"; {unused} tensors of it are not used" if unused else "")
    )
    span, patch = getattr(recipe.model, "position_grid", ()), recipe.model.divisor[0]
    grid = tuple(side // patch for side in model.network.spec.latent.size[-2:])
    if span and span != grid:
        log(f"positions: interpolated from {'x'.join(map(str, span))} to {'x'.join(map(str, grid))} patches")


def _word_rows(source: Pipeline, model: Pipeline, ours: Tensor, theirs: Tensor) -> tuple[tuple[list[str], int], Tensor]:
    """The words that another model does not have, of how many; and our table with its rows for the others."""
    known, words = (list(each.text.record()["words"]) if each.text else [] for each in (source, model))
    rows = {word: row for row, word in enumerate(known, 1)}
    table = ours.clone()
    table[0] = theirs[0]  # of no word
    for row, word in enumerate(words, 1):
        if word in rows:
            table[row] = theirs[rows[word]]
    return ([word for word in words if word not in rows], len(words)), table


def _fitting(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> set[str]:
    """Names of the tensors of modules whose tensors all have the same shapes on both sides."""
    same = {name for name in ours if name in theirs and ours[name].shape == theirs[name].shape}
    other = {name.rpartition(".")[0] for name in ours.keys() - same}
    return {name for name in same if name.rpartition(".")[0] not in other}


def _sources(source: Pipeline, model: Pipeline) -> tuple[dict[int, int], list[str]]:
    """Of a new model's labels those in another model by the names of both, and the names that the other does not have."""
    sources, fresh = dict[int, int](), list[str]()
    for label, name in enumerate(model.names):
        found = matching_labels(name, source.names)
        if len(found) == model.names.count(name):  # two classes of ImageNet are called crane
            sources[label] = found[model.names[:label].count(name)]
        else:
            fresh.append(name)
    return sources, fresh


def _table(table: Tensor, rows: int, sources: Mapping[int, int], classes: int) -> Tensor:
    """A label table of ``rows`` rows: those in ``sources``, the others as the null class, or the mean without one."""
    made = (table[-1] if len(table) > classes else table.mean(dim=0)).repeat(rows, 1)
    for label, row in sources.items():
        made[label] = table[row]
    return made


def _listed(names: Sequence[str], count: int, what: str = "classes") -> str:
    of = "" if len(names) == count else f" of {count}"
    return f"{len(names)}{of} {what}: {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"


def _parts(model: Pipeline, names: Sequence[str]) -> list[str]:
    """The parts of a network that tensors belong to."""
    parts = model.network.parts()
    return [
        part
        for part, modules in parts.items()
        if any(name.startswith(f"{module}.") for name in names for module in modules)
    ]
