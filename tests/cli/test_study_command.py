"""The command ``ditlab study``; what studies do is in tests/study."""

from __future__ import annotations

from pathlib import Path

import pytest

from ditlab.study import STUDIES


def test_mistakes_are_one_line(tmp_path: Path, refused, elsewhere: Path) -> None:
    refused(["study"], "STUDY")
    refused(["study", "scalling"], "unknown study 'scalling'", "did you mean 'scaling'?")
    refused(["study", "scaling", "--recipe", "digit"], "unknown recipe 'digit'")
    refused(["study", "scaling", "--recipe", "cifar10"], "give --path")
    refused(["study", "scaling", "--seeds", "-1"], "--seeds -1")
    refused(["study", "scaling", "--images", "5"], "less than one batch of 128")
    refused(["study", "scaling", "--count", "100"], "100 samples are too few", "1,281")
    refused(["study", "scaling", "--jobs", "-2"], "--jobs -2")
    refused(["study", "scaling", "--network", "vgg"], "'vgg'")
    assert not list((elsewhere / "studies").rglob("*.*"))


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_of_studies_names_each(study: str) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "study.md").read_text()
    assert f"ditlab study {study}{'' if study == 'text' else ' --recipe digits'} " in page
    assert f"| `{study}` |" in page
