"""Labels by name, by ImageNet's synonyms, in any case and Unicode form, with commas in them, or by number."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable

import pytest

from ditlab.errors import UserError
from ditlab.pipelines.labels import find_label, prompt_labels, split_labels

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


FASHION = (
    "T-shirt/top",
    "trouser",
    "shirt",
    "ankle boot",
    "bag",
    "sneaker",
    "dress",
    "crane",
    "crane",
    "tench, Tinca tinca",
    "☕",
    "靴",
)


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("a red sneaker", [5]), ("A Red SNEAKER!", [5]), ("two sneakers", [5]), ("red dresses", [6]), ("a t-shirt", [0]),
        ("a T shirt and the same t-shirt", [0]), ("one blue top", [0]), ("a shirt", [2]), ("green ankle boots", [3]),
        ("a Tinca\ttinca in a pond", [9]), ("ein ☕ bitte", [10]), ("赤い靴", [11]), ("a bag, red and large", [4]),
        ("bag", [4]), ("bag, sneaker, bag", [4, 5, 4]), ("tench, tinca tinca", [9]), ("3", [3]), ("bag,3", [4, 3]), ("", []),
        (",", []),
    ],
)  # fmt: skip
def test_a_prompt_names_one_class_or_lists_classes(prompt: str, labels: list[int]) -> None:
    assert prompt_labels(prompt, FASHION, len(FASHION)) == labels


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a red cat", "names no class of this model; known: T-shirt/top, trouser"),
        ("a snaker", "did you mean 'sneaker'"),
        ("boots", "names no class"),
        ("a bag and a sneaker", r"names 2 classes \(bag, sneaker\); give one, or a list"),
        ("a large crane", r"names 2 classes \(crane, crane\)"),
        ("bag, red", "unknown label 'red'"),
        ("99", "names no class"),
        ("bag" * 5000, "names no class"),
        ("<b>shoe</b>\x00", r"'<b>shoe</b>\\x00' names no class"),
    ],
)
def test_a_prompt_that_does_not_name_one_class_is_an_error_that_lists_them(prompt: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        prompt_labels(prompt, FASHION, len(FASHION))
    assert len(str(refused.value)) < 400


def test_numbers_name_classes_without_names() -> None:
    assert prompt_labels("the digit 3", (), 10) == [3]
    with pytest.raises(UserError, match="names no class of this model; known: 0, 1, 2"):
        prompt_labels("the digit 33", (), 10)


def test_long_lists_of_labels_take_linear_time() -> None:
    names = [f"class {k}, synonym {k}" for k in range(1000)]
    started = time.process_time()
    assert len(prompt_labels(",".join(["class 999"] * 1000), names, 1000)) == 1000
    assert prompt_labels("class " * 1600 + "2", names, 1000) == [2]
    for text in ("x," * 5000, "class 1 " * 1200):
        with pytest.raises(UserError):
            prompt_labels(f"{text} class 2", names, 1000)
    assert time.process_time() - started < 1
