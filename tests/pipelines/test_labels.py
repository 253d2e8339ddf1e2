"""Labels by name, in any Unicode form, with commas in them, or by number."""

from __future__ import annotations

import unicodedata

import pytest

from ditlab.errors import UserError
from ditlab.pipelines.labels import find_label, split_labels

NAMES = ("tench, Tinca tinca", "goldfish", "émeu", "Émeu", "3")


@pytest.mark.parametrize(
    ("wanted", "label"),
    [("goldfish", 1), ("GOLDFISH", 1), ("émeu", 2), ("Émeu", 3), ("3", 4), ("2", 2), (2, 2), ("tench, tinca tinca", 0)],
)
def test_a_label_is_found_by_name_or_number(wanted: str | int, label: int) -> None:
    forms = {unicodedata.normalize(form, wanted) for form in ("NFC", "NFD")} if isinstance(wanted, str) else {wanted}
    for name in forms:
        for names in (NAMES, [unicodedata.normalize("NFD", each) for each in NAMES]):
            assert find_label(name, names, 5) == label


@pytest.mark.parametrize(("wanted", "words"), [("goldfsh", "'goldfish'"), ("7", "0 to 4"), (-1, "0 to 4")])
def test_what_is_no_label_is_one_line(wanted: str | int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_label(wanted, NAMES, 5)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("", []),
        ("goldfish,3", ["goldfish", "3"]),
        (" goldfish , 0,", ["goldfish", "0"]),
        ("tench, Tinca tinca", ["tench, Tinca tinca"]),
        ("0,Tench,tinca tinca,goldfish", ["0", "Tench,tinca tinca", "goldfish"]),
        ("tench, goldfish", ["tench", "goldfish"]),
    ],
)
def test_names_with_commas_stay_whole(text: str, labels: list[str]) -> None:
    assert split_labels(text, NAMES) == labels
