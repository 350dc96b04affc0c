"""Seeds: the same names give the same numbers, on every machine and for ever; other names give others."""

from __future__ import annotations

import itertools

from syn4seg.seeds import noise_seed, seeded

NOISE, DRAWN = 1627428005760308007, [1790905632, 2649358137, 3861362453]


def test_the_numbers_of_a_name_are_what_they_were():
    """The bytes of every run hang on them."""
    assert noise_seed(0, "hdig-star-00007") == NOISE
    assert seeded("prompts", 0, "natural", "dog").integers(2**32, size=3).tolist() == DRAWN


def test_names_are_told_apart_wherever_they_are_cut():
    names = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), ("a", 1), ("a", 11), ("a1", 1)]
    drawn = [seeded(*one).integers(2**62) for one in names]
    assert len(set(drawn)) == len(names) and drawn == [seeded(*one).integers(2**62) for one in names]


def test_noise_seeds_are_62_bits_and_differ_by_run_and_sample():
    seeds = [noise_seed(seed, f"s{i}") for seed, i in itertools.product(range(20), range(200))]
    assert len(set(seeds)) == 4000 and min(seeds) >= 0 and 2**61 < max(seeds) < 2**62
    assert noise_seed(1, "1s") != noise_seed(11, "s")
