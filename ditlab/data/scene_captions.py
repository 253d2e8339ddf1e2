"""What a rendered scene contains, in words: the vocabulary, descriptions and their captions, and the held-out combinations.

A ``Description`` says what is in a picture. Its captions are all the sentences that say it; a scene is drawn from it
(``ditlab.data.scenes``), so a caption is exact. Two fixed sets of combinations never occur in the training split, neither in
a caption nor in a picture; every colour, shape and relation does:

- ``HELD_OUT_PAIRS``: 8 of the 40 pairs of colour and shape, one of each colour.
- ``HELD_OUT_RELATIONS``: of all arrangements of two different training pairs, A left of B and A above B, those for which
  the CRC-32 of the words "red square left of blue circle" is divisible by 8. B right of A is A left of B.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
PLACES = (
    "in the top left", "at the top", "in the top right",
    "on the left", "in the middle", "on the right",
    "in the bottom left", "at the bottom", "in the bottom right",
)  # fmt: skip
MOST = 4  # objects of a scene

Pair = tuple[str, str]  # colour, shape
Arrangement = tuple[Pair, str, Pair]  # the second is "left of" or "above"

HELD_OUT_PAIRS: frozenset[Pair] = frozenset(
    {
        ("red", "ring"), ("orange", "cross"), ("yellow", "square"), ("green", "circle"),
        ("cyan", "triangle"), ("blue", "cross"), ("purple", "ring"), ("black", "square"),
    }
)  # fmt: skip
_PAIRS = [pair for pair in product(COLOURS, SHAPES) if pair not in HELD_OUT_PAIRS]
HELD_OUT_RELATIONS: frozenset[Arrangement] = frozenset(
    (first, relation, second)
    for first, second in permutations(_PAIRS, 2)
    for relation in ("left of", "above")
    if zlib.crc32(" ".join((*first, relation, *second)).encode()) % 8 == 0
)

_NUMBERS = ("no", "one", "two", "three", "four")
_OTHER_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Group:
    """One or several objects that are alike; an empty string is what the caption does not say."""

    shape: str
    colour: str = ""
    count: int = 1
    size: str = ""  # of SIZES
    place: str = ""  # of PLACES, for a single object

    def phrase(self, number: bool = False) -> str:
        """With article and plural: "an orange cross", "two small orange crosses"; with ``number`` "one orange cross"."""
        noun = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        if self.count > 1:
            return f"{_NUMBERS[self.count]} {noun}{'es' if self.shape == 'cross' else 's'}"
        return f"{'one' if number else 'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@dataclass(frozen=True)
class Description:
    """What a picture contains, and nothing else: one to three groups, at most MOST objects."""

    groups: tuple[Group, ...]
    relation: str = ""  # of RELATIONS, of the first group to the second; both are single objects

    def captions(self) -> list[str]:
        """All sentences that say it, the plainest first."""
        if self.relation:
            first, second = (group.phrase() for group in self.groups)
            said = [f"{first} {words} {second}" for words in _OTHER_WORDS[self.relation]]
            placed = [f"{first} is {words} {second}" for words in _OTHER_WORDS[self.relation]]
            return said + placed + [f"there is {each}" for each in said] + [f"a picture of {each}" for each in said]
        phrases = [group.phrase() for group in self.groups]
        if len(phrases) > 1:
            said = f"{', '.join(phrases[:-1])} and {phrases[-1]}"
            return [said, f"there is {said}", f"a picture of {said}", f"{said} on a white background"]
        (group,) = self.groups
        if group.place:
            return [
                f"{phrases[0]} {group.place}", f"{phrases[0]} is {group.place}", f"there is {phrases[0]} {group.place}",
                f"{group.place} is {phrases[0]}",
            ]  # fmt: skip
        be = "are" if group.count > 1 else "is"
        said = [
            phrases[0],
            f"there {be} {phrases[0]}",
            f"a picture of {phrases[0]}",
            f"{phrases[0]} on a white background",
        ]
        return said if group.count > 1 else [*said, group.phrase(number=True)]

    def shortened(self, rng: random.Random) -> Description:
        """Without each colour, size, place and the relation with probability one half; objects that differ stay different."""

        def keep(word: str) -> str:
            return word if rng.random() < 0.5 else ""

        groups = tuple(
            replace(group, colour=keep(group.colour), size=keep(group.size), place=keep(group.place))
            for group in self.groups
        )
        relation = keep(self.relation)
        return Description(groups if len(set(groups)) == len(groups) else self.groups, relation)

    def held_out(self) -> bool:
        """Whether it names a held-out combination."""
        pairs = [(group.colour, group.shape) for group in self.groups]
        return any(pair in HELD_OUT_PAIRS for pair in pairs) or (
            bool(self.relation) and held_out_relation(pairs[0], self.relation, pairs[1])
        )


def held_out_relation(first: Pair, relation: str, second: Pair) -> bool:
    """Whether an arrangement is one of HELD_OUT_RELATIONS, said from either side."""
    if relation in ("right of", "below"):
        first, second = second, first
        relation = "left of" if relation == "right of" else "above"
    return (first, relation, second) in HELD_OUT_RELATIONS


def describe(rng: random.Random) -> Description:
    """Draw what a scene of the data set contains.

    Of 20 scenes 5 are single objects, 4 are two to four alike, 4 two objects, 5 two objects in a relation, 2 three objects.
    """
    kind = rng.random() * 20
    if kind < 5:
        group = _object(rng, size=0.3)
        if rng.random() < 0.3:
            return Description((replace(group, place=_pick(rng, PLACES)),))
        return Description((replace(group, colour="") if rng.random() < 0.1 else group,))
    if kind < 9:
        return Description((_several(rng, size=0.2),))
    if kind < 18:
        return _two(rng, _pick(rng, RELATIONS) if kind >= 13 else "", size=0.2)
    while True:
        groups = tuple(_object(rng) for _ in range(3))
        if len(set(groups)) == 3:
            return Description(groups)


@dataclass(frozen=True)
class Prompt:
    """A caption to generate an image from, and what a task demands of the image."""

    text: str
    expected: Description


def task_names() -> tuple[str, ...]:
    """GenEval's six tasks (Ghosh et al. 2023)."""
    return ("single object", "two objects", "counting", "colours", "position", "colour attribution")


def prompts(task: str, count: int, seed: int, held_out: bool) -> list[Prompt]:
    """Draw ``count`` prompts of a task, with or without a held-out combination; they may repeat.

    Single object and two objects demand shapes and number, the other tasks all that the prompt says. Held out is a pair of
    colour and shape, in two objects one or both; in position it is the arrangement of two pairs known from training.
    """
    rng = random.Random(f"scenes {task} {held_out} {seed}")
    drawn: list[Prompt] = []
    while len(drawn) < count:
        description = _task_description(rng, task)
        pairs_known = all((group.colour, group.shape) not in HELD_OUT_PAIRS for group in description.groups)
        if description.held_out() != held_out or (task == "position" and not pairs_known):
            continue
        text = _pick(rng, description.captions())
        if task in ("single object", "two objects"):
            description = replace(description, groups=tuple(replace(each, colour="") for each in description.groups))
        drawn.append(Prompt(text, description))
    return drawn


def _task_description(rng: random.Random, task: str) -> Description:
    if task in ("single object", "colours"):
        return Description((_object(rng),))
    if task == "counting":
        return Description((_several(rng),))
    while True:
        description = _two(rng, _pick(rng, RELATIONS) if task == "position" else "")
        first, second = description.groups
        # An image can only confuse the two if they differ in what the task is about.
        if first.shape != second.shape and (task != "colour attribution" or first.colour != second.colour):
            return description


def _object(rng: random.Random, size: float = 0) -> Group:
    """One object; its size is named with probability ``size``."""
    return Group(_pick(rng, SHAPES), _pick(rng, COLOURS), size=_pick(rng, SIZES) if rng.random() < size else "")


def _several(rng: random.Random, size: float = 0) -> Group:
    """Two to four objects that are alike; more than two are small."""
    group, count = _object(rng, size), 2 + int(rng.random() * (MOST - 1))
    return replace(group, count=count, size="small" if group.size and count > 2 else group.size)


def _two(rng: random.Random, relation: str, size: float = 0) -> Description:
    """Two objects that differ in colour, shape or both."""
    while True:
        groups = _object(rng, size), _object(rng, size)
        if (groups[0].colour, groups[0].shape) != (groups[1].colour, groups[1].shape):
            return Description(groups, relation)


def _pick(rng: random.Random, values: Sequence[str]) -> str:  # random() alone is the same in every version of Python
    return values[int(rng.random() * len(values))]
