"""The registry of text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ditlab.encoders.text import TextEncoder, TextEncoderConfig
from ditlab.encoders.text_frozen import FrozenText, MiniLM
from ditlab.encoders.text_tokens import WordTokens
from ditlab.errors import UserError, nearest

TEXT_ENCODERS: dict[str, type[TextEncoder]] = {each.kind: each for each in (WordTokens, MiniLM, FrozenText)}


def _kind(name: str) -> type[TextEncoder]:
    if name not in TEXT_ENCODERS:
        raise UserError(f"unknown text encoder {name!r}; {nearest(name, ('none', *TEXT_ENCODERS))}")
    return TEXT_ENCODERS[name]


def build_text_encoder(config: TextEncoderConfig, captions: Sequence[str]) -> TextEncoder | None:
    """The encoder of a configuration, for these captions; None for ``none``.

    Raises:
        UserError: a wrong configuration, or no captions.
    """
    config.check()
    return None if config.kind == "none" else _kind(config.kind).build(config, captions)


def restore_text_encoder(record: Mapping[str, Any] | None) -> TextEncoder | None:
    """The encoder of a model file's record, None for None.

    Raises:
        UserError: an encoder that this version does not have.
    """
    return None if record is None else _kind(str(record["kind"])).restore(record)
