"""A tokenizer made from the captions: a token is a word, a number or a symbol."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch

from ditlab.encoders.text import EncodedText, TextEncoder, TextEncoderConfig
from ditlab.errors import UserError

NAMED = 8  # unknown words that are named

# Scripts that are written without spaces: every character is a token.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_TOKEN = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")


def split_words(text: str) -> Iterator[str]:
    """The words of a text in order, without case: words and numbers, single characters of Chinese, Japanese and Thai,
    and every symbol on its own. Control characters and other marks without a width separate words.
    """
    normal = unicodedata.normalize("NFKC", text).casefold()
    visible = "".join(" " if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Co", "Cn") else each for each in normal)
    return (found.group() for found in _TOKEN.finditer(visible))


class WordTokens(TextEncoder):
    """Ids of the words of the captions; other words are skipped. Id 0 is padding.

    Args:
        words: the vocabulary; word k has id k + 1.
        max_tokens: words of a text that are used.
    """

    kind = "tokens"

    def __init__(self, words: Sequence[str], max_tokens: int):
        self.words, self.max_tokens, self.vocabulary = tuple(words), max_tokens, len(words) + 1
        self._ids = {word: index for index, word in enumerate(words, 1)}

    @classmethod
    def build(cls, config: TextEncoderConfig, captions: Sequence[str]) -> Self:
        """The most frequent words of the captions, equally frequent ones in alphabetical order.

        Raises:
            UserError: no caption has a word.
        """
        counts, longest = Counter[str](), 0
        for caption in captions:
            found = list(split_words(caption))
            counts.update(found)
            longest = max(longest, len(found))
        if not counts:
            raise UserError("the images have no captions to make a vocabulary of; give captions, or --text.kind none")
        words = sorted(counts, key=lambda word: (-counts[word], word))[: config.vocabulary]
        return cls(words, min(config.max_tokens, longest))

    @classmethod
    def restore(cls, record: Mapping[str, Any]) -> Self:  # noqa: D102
        return cls([str(word) for word in record["words"]], int(record["max_tokens"]))

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """See ``TextEncoder.encode``."""
        ids = [[self._ids[word] for word in self.tokens(text)] for text in texts]
        width = max(1, *(len(each) for each in ids)) if ids else 1
        value = torch.tensor([each + [0] * (width - len(each)) for each in ids], dtype=torch.int64).view(-1, width)
        return EncodedText(value, value > 0)

    def tokens(self, text: str) -> list[str]:
        """See ``TextEncoder.tokens``: the words that are known and used."""
        return [word for word in split_words(text) if word in self._ids][: self.max_tokens]

    def notes(self, text: str) -> list[str]:
        """See ``TextEncoder.notes``: the unknown words, what is beyond ``max_tokens``, and that no word is left."""
        words = list(split_words(text))
        unknown = list(dict.fromkeys(word for word in words if word not in self._ids))
        known, notes = sum(word in self._ids for word in words), []
        if unknown:
            others = f" and {len(unknown) - NAMED:,} more" if len(unknown) > NAMED else ""
            shown = ", ".join(repr(word[:40]) for word in unknown[:NAMED])
            notes.append(f"words that no training caption has are skipped: {shown}{others}")
        if known > self.max_tokens:
            notes.append(f"the first {self.max_tokens} words are used, of {known:,} that are known")
        if not known:
            notes.append("no known word is left: the image is made without a prompt")
        return notes

    def record(self) -> dict[str, Any]:
        """See ``TextEncoder.record``."""
        return {"kind": self.kind, "words": list(self.words), "max_tokens": self.max_tokens}
