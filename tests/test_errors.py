from ditlab.errors import nearest


def test_the_closest_word_is_named_before_the_known_ones():
    assert nearest("ddmi", ["euler", "ddim"]).startswith("did you mean 'ddim'?")
    assert "euler, ddim" in nearest("ddmi", ["euler", "ddim"])


def test_case_does_not_matter_and_the_known_spelling_is_shown():
    assert "'DiT-XL/2'" in nearest("dit-xl/2", ["DiT-S/2", "DiT-XL/2"])


def test_with_nothing_close_the_known_words_are_listed():
    assert nearest("zzzz", ["euler", "ddim"]) == "known: euler, ddim"


def test_long_lists_are_cut_after_twelve_words():
    hint = nearest("qqq", [f"word{index}" for index in range(20)])
    assert "word11" in hint
    assert "word12" not in hint
    assert hint.endswith("...")


def test_nothing_known_and_other_types_do_not_fail():
    assert nearest("a", []) == "known: "
    assert "4" in nearest("x", [4, 8])  # type: ignore[list-item]
