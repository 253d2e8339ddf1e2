"""Training and sampling give the numbers of the reference runs: see reference.py, which wrote them."""

import json

import pytest
import torch
from reference import CASES, JSON, compute, summary

TOLERANCE = 1e-4  # absolute and relative, for other processors and versions of torch
RECORDED = json.loads(JSON.read_text())


def test_every_case_is_recorded():
    assert RECORDED.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_case_gives_its_recorded_numbers(name: str):
    tensors = {key: summary(tensor) for key, tensor in compute(name).items()}
    assert tensors.keys() == RECORDED[name].keys()
    for key, recorded in RECORDED[name].items():
        assert tensors[key].keys() == recorded.keys()
        for part, expected in recorded.items():
            found = torch.tensor(tensors[key][part], dtype=torch.float64)
            wanted = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(
                found, wanted, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text, at=f"{key}, {part}": f"{at}: {text}"
            )
