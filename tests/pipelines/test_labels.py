"""Labels by name, by ImageNet's synonyms, in any case and Unicode form, with commas in them, or by number."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

from ditlab.errors import UserError
from ditlab.pipelines.labels import find_label, split_labels

NAMES = ("tench, Tinca tinca", "great white shark, white shark, man-eater", "crane", "Maillot", "maillot, tank suit", "crane",
         "émeu", "Émeu", "white", "3")  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        ("tench, Tinca tinca", 0), ("Tench,tinca Tinca", 0), ("tench", 0), ("TINCA TINCA", 0), ("white shark", 1), ("white", 8),
        ("Maillot", 3), ("maillot", 3), ("tank suit", 4), ("émeu", 6), ("Émeu", 7), ("3", 9), ("2", 2), (2, 2),
    ],
)  # fmt: skip
def test_a_label_is_found_by_name_synonym_or_number(wanted: str | int, label: int) -> None:
    forms = {unicodedata.normalize(form, wanted) for form in ("NFC", "NFD")} if isinstance(wanted, str) else {wanted}
    for name in forms:
        for names in (NAMES, [unicodedata.normalize("NFD", each) for each in NAMES]):
            assert find_label(name, names, len(NAMES)) == label


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("shark", "known: "), ("tnch", "known: "), ("Maillott", "'Maillot'"), ("", "known: "), ("tench, white shark", "known: "),
     ("10", "0 to 9"), (-1, "0 to 9")],
)  # fmt: skip
def test_what_is_no_label_is_one_line(wanted: str | int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_label(wanted, NAMES, len(NAMES))


@pytest.mark.parametrize(
    ("wanted", "classes"),
    [("crane", "2 (crane), 5 (crane)"), ("Crane", "2 (crane), 5 (crane)"), ("ÉMEU", "6 (émeu), 7 (Émeu)")],
)
def test_a_label_of_several_classes_is_an_error_that_names_them(
    wanted: str, classes: str, refuses: Callable[..., str]
) -> None:
    refuses(lambda: find_label(wanted, NAMES, len(NAMES)), repr(wanted), f"give the number of one: {classes}")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", []), ("tench", ["tench"]), ("crane,3", ["crane", "3"]), (" crane ,, 0,", ["crane", "0"]),
        ("tench, Tinca tinca", ["tench, Tinca tinca"]),
        ("0,Tench,tinca tinca,white", ["0", "Tench,tinca tinca", "white"]),
        ("tench, crane", ["tench", "crane"]),
        ("great white shark, white shark", ["great white shark", "white shark"]),
        ("great white shark, white shark, man-eater,crane", ["great white shark, white shark, man-eater", "crane"]),
    ],
)  # fmt: skip
def test_names_with_commas_stay_whole(text: str, labels: list[str]) -> None:
    assert split_labels(text, NAMES) == labels
