"""``ditlab data``: what is in a folder, and a picture of it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ditlab.cli.main import main


@pytest.fixture
def photos(tmp_path):
    for name, colour, count in (("cat", (200, 80, 40), 3), ("dog", (40, 80, 200), 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 30 + index), colour).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "photos" / "cat" / "notes.txt").touch()
    return tmp_path / "photos"


def test_it_prints_what_is_there_and_draws_it(photos, tmp_path, capsys) -> None:
    main(["data", str(photos), "--out", str(tmp_path / "x.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{photos}: 5 images of 3x64x64, 2 classes", "classes: cat 3, dog 2"]
    assert "images: RGB, 30x40 to 32x40 (HxW), cropped to 64x64 (5 of 5 enlarged)" in lines
    assert "skipped: 1 .txt" in lines
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).reshape(-1, 3)
    for colour, count in (((200, 80, 40), 3), ((40, 80, 200), 2)):  # all images, each of at least 64x64
        assert (picture == colour).all(1).sum() >= count * 64 * 64
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "x.png"]


def test_captions_are_printed_and_drawn_under_their_images(photos, tmp_path, capsys) -> None:
    (photos / "cat" / "0.txt").write_text("a \x1b[2Jcat\nanother cat\n")
    (photos / "dog" / "0.txt").write_text("a very long dog " * 100)
    main(["data", str(photos), "--out", str(tmp_path / "captions.png")])
    lines = capsys.readouterr().out.splitlines()
    assert "captions: 1 of 5 images have one, 1 has several; 3 without are trained as unconditional" in lines
    assert "captions found; --text.kind tokens trains on them" in lines
    assert 'caption: "a [2Jcat"' in lines
    assert any(line.startswith('caption: "a very long dog a') and line.endswith('..."') for line in lines)
    drawn = np.asarray(Image.open(tmp_path / "captions.png").convert("RGB"))
    dark = drawn.max(2) < 120
    cat, dog = ((drawn == np.array(colour)).all(2) for colour in ((200, 80, 40), (40, 80, 200)))
    for image in (cat, dog):
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        under = dark[rows[-1] + 1 : rows[-1] + 60]
        assert under[:, columns[0] : columns[0] + 128].any()  # the first image of the row has a caption
        assert not under[:, columns[0] + 128 :].any()  # the others have none


@pytest.mark.parametrize(
    ("arguments", "words"), [(["nowhere"], "nowhere"), (["digits", "--data.size", "x"], "--data.size")]
)
def test_mistakes_are_one_line(arguments, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["data", *arguments])
    assert words in capsys.readouterr().err
