"""Labels of a network matched with classes of a data set, and the background that is made of all the others."""

from __future__ import annotations

import pytest
import torch

from syn4seg.errors import UserError
from syn4seg.segmenter.semantic_classes import base_rows, match_rows, merged_rows

VOC = ("__background__", "aeroplane", "diningtable", "pottedplant", "tvmonitor")
ADE = ("wall", "door, double door", "door", "screen; monitor", "bed ", "screen")


def test_names_match_without_case_spaces_and_punctuation_and_by_synonym_where_no_label_is_meant():
    wanted = ["Potted-Plant", "dining table", "cat"]
    assert match_rows(VOC, 5, wanted, {}) == {"Potted-Plant": 3, "dining table": 2}
    assert match_rows(ADE, 6, ["door", "monitor", "bed", "double door"], {}) == {
        "door": 2,
        "monitor": 3,
        "bed": 4,
        "double door": 1,
    }
    assert base_rows(VOC, 5, ["tv", "cat"], {"tv": "tvmonitor", "cat": 1}) == [4, 1]
    assert base_rows(None, 3, ["a", "b"], {"a": 2, "b": 0}) == [2, 0]


@pytest.mark.parametrize(
    ("names", "base", "given", "message"),
    [
        (VOC, ["aeroplan"], {}, r"does not know the base class 'aeroplan'; it has __background__.*near: aeroplane.*base.names"),
        (VOC, ["cat"], {"cat": "tiger"}, "no label 'tiger' for 'cat'"),
        (VOC, ["cat"], {"cat": 5}, "row 5, but the network has the rows 0 to 4"),
        (VOC, ["a", "b"], {"a": 1, "b": 1}, "row 1 of the network would be both 'a' and 'b'"),
        (("x, y", "z, y"), ["y"], {}, r"several rows 'y': \[0, 1\]; choose one"),
        (None, ["cat"], {}, "its 2 rows have no names"),
        (("cat", "dog"), ["cat", "dog"], {}, "none is left for the background"),
    ],
)
def test_what_cannot_be_matched_is_refused_with_the_remedy(names, base, given, message):
    with pytest.raises(UserError, match=message):
        base_rows(names, len(names) if names else 2, base, given)


def test_one_other_label_keeps_its_row_and_several_are_merged_by_their_summed_probability():
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 8), torch.randn(6)
    rows, biases, agreed = merged_rows(weight, bias, [5, 1, 2, 4, 3], torch.zeros(0, 8))
    assert torch.equal(rows, weight[[0, 5, 1, 2, 4, 3]]) and torch.equal(biases, bias[[0, 5, 1, 2, 4, 3]]) and agreed is None

    features = torch.randn(4000, 8)
    rows, biases, agreed = merged_rows(weight, bias, [3, 1], features)
    assert torch.equal(rows[1:], weight[[3, 1]]) and agreed is not None and agreed > 0.85
    logits = features.double() @ weight.double().T + bias
    target = torch.stack([logits.softmax(1)[:, [0, 2, 4, 5]].sum(1), *logits.softmax(1)[:, [3, 1]].T], 1)

    def loss(row: torch.Tensor, offset: torch.Tensor) -> float:  # the slow, obvious one
        merged = torch.cat([(features @ row + offset)[:, None], logits[:, [3, 1]]], 1)
        return -(target[:3000] * merged.double().log_softmax(1)[:3000]).sum(1).mean().item()

    best = loss(rows[0], biases[0])
    for _ in range(30):
        assert best < loss(rows[0] + 0.05 * torch.randn(8), biases[0] + 0.05 * torch.randn(()))
    others = [0, 2, 4, 5]
    assert best < loss(weight[others].mean(0), bias[others].mean()) - 0.05
    again = merged_rows(weight, bias, [3, 1], features)
    assert torch.equal(again[0], rows) and again[2] == agreed


def test_labels_that_are_alike_become_one_row_exactly_up_to_their_number():
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    weight[2] = weight[1]
    bias = torch.tensor([0.3, 0.1, 0.1, 0.2])
    features = torch.randn(3000, 5, generator=torch.Generator().manual_seed(2))
    rows, biases, agreed = merged_rows(weight, bias, [0, 3], features)
    assert torch.allclose(rows[0], weight[1], atol=2e-3)
    assert biases[0].item() == pytest.approx(0.1 + torch.log(torch.tensor(2.0)).item(), abs=2e-3) and agreed == 1
