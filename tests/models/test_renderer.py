"""The renderer obeys prompts, knows its masks, and its bag of words behaves like a text embedding."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.data import embedded
from syn4seg.errors import UserError
from syn4seg.models.generators import load_generator, load_text_encoder
from syn4seg.models.renderer import TOKENS, WIDTH, BagOfWords, Renderer
from syn4seg.prompts.grammar import GrammarAgent

PROMPTS = ["a big red star on sand", "two small blue moons on fog", "a fish"]


def test_images_are_the_drawn_scene_of_the_prompt_and_truth_is_its_mask():
    renderer, encoded = Renderer(48), BagOfWords().encode(PROMPTS)
    images, faults = renderer.generate(PROMPTS, encoded, [7, 8, 9])
    assert images.shape == (3, 48, 48, 3) and images.dtype == np.uint8 and faults == ["", "", ""]
    for image, prompt, seed in zip(images, PROMPTS, (7, 8, 9), strict=True):
        drawn, mask = embedded.draw(embedded.scene_of_prompt(prompt, seed), 48)
        np.testing.assert_array_equal(image, drawn)
        np.testing.assert_array_equal(renderer.truth(prompt, seed), mask)
    assert {0, embedded.CLASSES.index("fish") + 1} <= set(np.unique(renderer.truth("a fish", 9)))


def test_an_image_depends_on_its_prompt_and_seed_alone():
    renderer, bag = Renderer(64), BagOfWords()
    images, _ = renderer.generate(PROMPTS, bag.encode(PROMPTS), [7, 8, 9])
    alone, _ = renderer.generate(PROMPTS[1:2], bag.encode(PROMPTS[1:2]), [8])
    np.testing.assert_array_equal(images[1], alone[0])
    other, _ = renderer.generate(PROMPTS[1:2], bag.encode(PROMPTS[1:2]), [9])
    assert (other[0] != alone[0]).any()


def test_no_sentence_of_the_world_is_drawn_with_a_fault():
    prompts = GrammarAgent("embedded", 0, 60).propose("kite", 0, [], [])
    assert set(Renderer(32).generate(prompts, BagOfWords().encode(prompts), list(range(60)))[1]) == {""}


def test_a_prompt_outside_the_world_and_uneven_lists_are_errors():
    renderer, bag = Renderer(64), BagOfWords()
    with pytest.raises(UserError, match=r"'a bicycle'.*ball, donut"):
        renderer.generate(["a bicycle"], bag.encode(["a bicycle"]), [0])
    with pytest.raises(UserError, match="2 prompts, 1 embeddings and 2 noise seeds"):
        renderer.generate(["a star"] * 2, bag.encode(["a star"]), [0, 1])


def test_pooled_is_the_normalised_mean_of_the_sequence_and_words_are_unit_vectors():
    encoded = BagOfWords().encode(PROMPTS)
    assert encoded.pooled.shape == (3, WIDTH) and encoded.sequence.shape == (3, TOKENS, WIDTH)
    for prompt, pooled, sequence in zip(PROMPTS, encoded.pooled, encoded.sequence, strict=True):
        count = len(prompt.split())
        np.testing.assert_allclose(np.linalg.norm(sequence, axis=1), [1] * count + [0] * (TOKENS - count), atol=1e-6)
        mean = sequence[:count].mean(0)
        np.testing.assert_allclose(pooled, mean / np.linalg.norm(mean), atol=1e-6)
    assert not encoded.empty_pooled.any() and not encoded.empty_sequence.any()


def test_order_of_words_case_and_neighbours_do_not_change_the_bag():
    bag = BagOfWords()
    pooled = bag.encode(["a red star on sand", "On sand a RED, star.", "a fish"]).pooled
    np.testing.assert_allclose(pooled[0], pooled[1], atol=1e-6)
    np.testing.assert_array_equal(pooled[2], bag.encode(["a fish"]).pooled[0])


def test_prompts_that_share_more_words_are_closer():
    one, near, far = BagOfWords().encode(["a big red star on sand", "a big blue star on sand", "two moons on fog"]).pooled
    assert one @ far < one @ near < 1 - 1e-3


def test_every_sentence_of_the_world_fits_the_bag():
    longest = max((p for p in GrammarAgent("embedded", 0, 1152).propose("hourglass", 0, [], [])), key=lambda p: len(p.split()))
    assert len(longest.split()) <= TOKENS
    assert BagOfWords().encode([longest]).pooled.any()


def test_the_name_renderer_loads_both_halves():
    assert isinstance(load_text_encoder("renderer"), BagOfWords)
    generator = load_generator("renderer", steps=9, guidance=3.0, size=32)
    assert isinstance(generator, Renderer) and generator.truth("a star", 0).shape == (32, 32)
