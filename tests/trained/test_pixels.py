"""Scores to pixels: tiles of a constant network give the whole image, and little memory gives the same labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.evaluation import Query, scores_to_classes
from syn4seg.trained import pixels
from syn4seg.trained.pixels import label_pixels, probabilities, starts, tiled_probabilities

CANVAS = Canvas(32)


def by_colour(images):
    """Scores that depend on a cell's own colour alone, so that a tile says what the whole image says."""
    cells = torch.tensor(np.stack([CANVAS.image(image) for image in images])).permute(0, 3, 1, 2).float() / 32
    return torch.cat([cells, 8 - cells], 1)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 70, 100])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.9])
def test_tiles_cover_a_side_and_overlap_as_much_as_was_asked(length, overlap):
    found = starts(length, 32, overlap)
    covered = np.zeros(length, bool)
    for start in found:
        covered[start : start + 32] = True
    assert covered.all() and found[0] == 0 and max(found) + min(32, length) == length
    assert all(b - a <= max(1, 32 * (1 - overlap)) for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("shape", [(32, 32), (100, 70), (33, 90), (20, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_of_a_network_that_sees_single_pixels_say_what_it_says_of_each(shape, batch):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    parts = list(tiled_probabilities(image, by_colour, CANVAS, 32, 0.25, batch))
    found = np.concatenate([part for _, part in parts], 1)
    assert [first for first, _ in parts] == list(np.cumsum([0, *(part.shape[1] for _, part in parts)]))[:-1]
    cells = torch.tensor(image).permute(2, 0, 1).float() / 32
    expected = torch.cat([cells, 8 - cells]).softmax(0).numpy()
    if min(shape) >= 32:  # a tile of the canvas's own size is not resized
        assert np.abs(found - expected).max() < 1e-5
    assert found.shape == (6, *shape) and np.allclose(found.sum(0), 1, atol=1e-5)


def test_a_constant_network_is_constant_in_tiles():
    image = np.zeros((200, 150, 3), np.uint8)
    scores = torch.tensor([1.0, 3.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    whole = probabilities(scores, CANVAS, (200, 150))
    parts = [p for _, p in tiled_probabilities(image, lambda tiles: scores.expand(len(tiles), -1, -1, -1), CANVAS, 64, 0.3, 4)]
    assert np.abs(np.concatenate(parts, 1) - whole).max() < 1e-6


@pytest.mark.parametrize("shape", [(32, 32), (90, 40), (17, 300)])
def test_labels_and_confidence_are_those_of_the_evaluation_with_much_and_with_little_memory(shape, monkeypatch):
    scores = torch.randn(1, 7, 32, 32, generator=torch.Generator().manual_seed(0))
    label, confidence = label_pixels(scores, CANVAS, shape)
    expected = scores_to_classes(Query("", scores[0], np.zeros(shape, np.uint8), CANVAS, shape), scores)
    assert np.array_equal(label, expected)
    assert np.allclose(confidence, probabilities(scores, CANVAS, shape).max(0), atol=1e-6)
    monkeypatch.setattr(pixels, "LARGE", 0)
    frugal, again = label_pixels(scores, CANVAS, shape)
    assert (frugal != label).mean() < 1e-3 and np.allclose(again, confidence, atol=1e-4)
