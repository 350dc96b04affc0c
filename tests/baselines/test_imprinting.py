"""Prototype imprinting against a loop over cells and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.segmenter.network import Classifier, upsample
from tests.baselines.test_support import BASE, DIM, GRID, NOVEL, SIDE, base_classifier, build_on, noise_query, support_set


def test_imprinting_equals_a_loop_over_cells_and_pixels():
    support, base, query = support_set(), base_classifier(), noise_query(99)
    rows = [w / w.norm() for w in base.weight]
    for k in (3, 4):
        total, count = torch.zeros(DIM), 0
        for s in support:
            for y, x in np.ndindex(GRID, GRID):
                if s.label[y * SIDE // GRID, x * SIDE // GRID] == k:
                    total, count = total + s.features[:, y, x].float(), count + 1
        rows.append(total / count / (total / count).norm())
    scores = torch.zeros(1, 1 + BASE + NOVEL, GRID, GRID)
    for y, x in np.ndindex(GRID, GRID):
        f = query.features[:, y, x].float()
        scores[0, :, y, x] = torch.stack([10 * f @ row / max(float(f.norm()), 1e-12) for row in rows])
    predicted = build_on("imprinting", support)(query)
    assert predicted.dtype == np.uint8 and (predicted == upsample(scores, (SIDE, SIDE))[0].argmax(0).numpy()).mean() > 0.995


def test_given_prototypes_replace_the_rows_of_a_linear_classifier_and_of_no_other():
    base, rows, query = base_classifier(), torch.randn(1 + BASE, DIM, generator=torch.Generator().manual_seed(3)), noise_query(5)
    rows[1] = 0  # a class that no base image shows keeps its row
    expected = base.replaced(torch.where(rows.any(1, keepdim=True), rows, base.weight), base.bias)
    predicted = build_on("imprinting", support_set(), prototypes=rows)(query)
    assert np.array_equal(predicted, build_on("imprinting", support_set(), base=expected)(query))
    assert not np.array_equal(predicted, build_on("imprinting", support_set())(query))
    cosine = Classifier(base.weight, base.bias, cosine=True)
    same = (build_on("imprinting", support_set(), base=cosine, prototypes=p)(query) for p in (None, rows))
    assert np.array_equal(*same)


@pytest.mark.parametrize("scale", [0.1, 50.0])
def test_imprinting_does_not_see_the_scale_of_the_base_rows_or_their_biases(scale):
    base = base_classifier()
    other = base.replaced(base.weight * scale, base.bias + torch.arange(1.0 + BASE))
    a, b = (build_on("imprinting", support_set(), base=v)(noise_query(5)) for v in (base, other))
    assert (a == b).all()
