"""Train, sample, measure and study diffusion transformers."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditlab.errors import UserError
    from ditlab.models.blocks import register_block
    from ditlab.pipelines import Pipeline, Step
    from ditlab.recipes import Recipe
    from ditlab.recipes.api import evaluate, load, recipe, train
    from ditlab.train import Callback, TensorBoard

__version__ = "0.2.0"
__all__ = [
    "Callback", "Pipeline", "Recipe", "Step", "TensorBoard", "UserError", "evaluate", "load", "recipe", "register_block",
    "train",
]  # fmt: skip

_API = "ditlab.recipes.api"
_PLACES = {
    "Callback": "ditlab.train", "Pipeline": "ditlab.pipelines", "Recipe": "ditlab.recipes", "Step": "ditlab.pipelines",
    "TensorBoard": "ditlab.train", "UserError": "ditlab.errors", "load": _API, "recipe": _API,
    "register_block": "ditlab.models.blocks",
}  # fmt: skip


class CallablePackage(ModuleType):
    """A package that is called as the function of its name: ``ditlab.train(...)`` and ``ditlab.evaluate(...)``.

    The import of any module of the package makes it the attribute ``train`` of ditlab, in place of a function there.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__wrapped__(*arguments, **named)

    @property
    def __wrapped__(self) -> Any:
        return getattr(importlib.import_module(_API), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.__wrapped__)


def __getattr__(name: str) -> Any:
    """Import a name at its first use: ``import ditlab`` alone imports no PyTorch."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in ("evaluate", "train"):
        return importlib.import_module(f"ditlab.{name}")
    raise AttributeError(f"module 'ditlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
