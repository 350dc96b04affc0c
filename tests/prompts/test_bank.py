"""The prompt bank against slow references: the one-by-one loop, the text rules, patience, diversity by definition."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syn4seg.errors import UserError
from syn4seg.models.generators import load_text_encoder
from syn4seg.prompts import bank as bank_module
from syn4seg.prompts.bank import NEAR, OFF_CLASS, accept_in_order, build_bank, diversity, unit_rows
from syn4seg.prompts.grammar import GrammarAgent


def cloud(seed: int, count: int, width: int = 24, spread: float = 0.5) -> np.ndarray:
    """Embeddings like those of prompts: a common direction, a few topics, and some of their own."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(7, width))
    return unit_rows(rng.normal(size=width) + topics[rng.integers(7, size=count)] + spread * rng.normal(size=(count, width)))


def one_by_one(candidates, bank, threshold, limit):
    """The definition, in float64: (accepted, similarity, nearest) of each candidate until `limit` are accepted."""
    known, accepted, similarity, nearest = [row.astype(np.float64) for row in bank], [], [], []
    for i, row in enumerate(candidates.astype(np.float64)):
        if len(accepted) == limit:
            break
        cosines = [float(u @ row) for u in known]
        similarity.append(max(cosines, default=-math.inf))
        nearest.append(int(np.argmax(cosines)) if cosines else -1)
        if not cosines or similarity[-1] < threshold:
            accepted.append(i)
            known.append(row)
    return accepted, similarity, nearest


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 70),
    st.integers(0, 5),
    st.floats(-0.5, 1.0),
    st.integers(0, 80),
    st.sampled_from((1, 2, 7, 64)),
)
def test_blocked_acceptance_is_the_one_by_one_loop(seed, count, banked, threshold, limit, block):
    candidates, bank = cloud(seed, count), cloud(seed, banked)
    accepted, similarity, _ = one_by_one(candidates, bank, threshold, limit)
    got = accept_in_order(candidates, bank, threshold, limit, block)
    assert got.accepted.tolist() == accepted
    np.testing.assert_allclose(got.similarity, similarity, atol=1e-5)
    known = np.concatenate([bank, candidates[got.accepted]])
    for i, (s, near) in enumerate(zip(got.similarity, got.nearest, strict=True)):
        assert (near == -1) == math.isinf(s)
        if near >= 0:
            assert near < banked or got.accepted[near - banked] < i, "compared to a later candidate"
            assert known[near] @ candidates[i] == pytest.approx(s, abs=1e-5)


@pytest.mark.parametrize("block", [1, 3, 50])
def test_copies_of_an_accepted_prompt_are_refused_whatever_the_block(block):
    rows = cloud(1, 9, width=700)
    accepted = accept_in_order(np.concatenate([rows, rows, rows]), rows[:0], 0.9999, 99, block).accepted
    assert accepted.tolist() == list(range(9))


def test_the_block_size_has_no_say_on_the_very_edge_of_the_threshold():
    rows = cloud(5, 60, width=2048)
    edge = float(rows[0].astype(np.float64) @ rows[1].astype(np.float64))
    for nudge, expected in ((0.0, [0]), (1e-12, [0, 1])):
        for block in (1, 2, 60):
            got = accept_in_order(rows[:2], rows[:0], edge + nudge, 60, block)
            assert got.accepted.tolist() == expected
        same = [accept_in_order(rows, rows[:0], edge + nudge, 60, block).accepted.tolist() for block in (1, 7, 60)]
        assert same[0] == same[1] == same[2]


def test_the_accepted_are_pairwise_below_the_threshold():
    rows = cloud(3, 300)
    kept = rows[accept_in_order(rows, rows[:0], 0.8, 300).accepted]
    assert 5 < len(kept) < 300 and diversity(kept)["max_cosine"] < 0.8 + 1e-6


def test_embeddings_that_are_not_of_unit_length_are_refused_by_number():
    rows = cloud(0, 6)
    for bad in (np.nan, 0.0, 2.0):
        broken = rows.copy()
        broken[4] *= bad
        with pytest.raises(UserError, match=r"candidate 4 has length.*unit_rows"):
            accept_in_order(broken, rows[:0], 0.5, 9, block=3)
    with pytest.raises(UserError, match=r"\(6, 24\).*one text encoder"):
        accept_in_order(rows, np.ones((1, 23), np.float32), 0.5, 9)


# ------------------------------------------------------------------------------------------------ the bank
@dataclass
class ScriptedAgent:
    """Says its rounds one after another and remembers what it was told; silent afterwards."""

    rounds: list[list[str]]

    def __post_init__(self):
        self.told: list[tuple[list[str], list[tuple[str, str]]]] = []

    def propose(self, class_name, round_index, accepted, refused):
        self.told.append((accepted, refused))
        return self.rounds[round_index] if round_index < len(self.rounds) else []


def hashed(texts: list[str]) -> np.ndarray:
    """A true small text encoder: the sum of a random vector per word."""
    rows = []
    for text in texts:
        words = [hashlib.sha256(w.encode()).digest() for w in text.lower().split()]
        rows.append(sum(np.random.default_rng(int.from_bytes(w[:8], "little")).normal(size=64) for w in words))
    return unit_rows(np.array(rows))


def build(rounds, **options):
    return build_bank(ScriptedAgent(rounds), hashed, "star", **{"size": 10, "lambda_prompt": 0.95, "patience": 5} | options)


def test_the_first_prompt_is_always_accepted_and_compared_to_nothing():
    bank = build([["a star"]], lambda_prompt=-0.99, size=1)
    assert [c.text for c in bank.accepted] == ["a star"] and bank.stopped == "size" and bank.warning == ""
    assert bank.accepted[0].similarity is None and bank.accepted[0].nearest == ""


def test_every_candidate_is_accounted_for_in_order_with_its_reason():
    first = ["a red star", "A  red star.", " . ", "a blue boat", "a red star star"]
    bank = build([first, ["two green stars at sea"]], lambda_prompt=0.8, size=2)
    assert [(c.text, c.order) for c in bank.accepted] == [("a red star", 0), ("two green stars at sea", 5)]
    whys = [(1, "same text"), (2, "empty"), (3, "off class"), (4, "near duplicate")]
    assert [(c.order, c.why) for c in bank.refused] == whys
    assert bank.refused[-1].nearest == "a red star" and 0.8 <= (bank.refused[-1].similarity or 0) < 1
    assert bank.acceptance_rate == 2 / 6 and bank.stopped == "size"


def test_embeddings_of_the_bank_are_those_of_its_prompts_and_obey_the_threshold():
    bank = build_bank(GrammarAgent("embedded", 0), hashed, "star", size=40, lambda_prompt=0.8, patience=200)
    np.testing.assert_array_equal(bank.embeddings, hashed([c.text for c in bank.accepted]))
    assert diversity(bank.embeddings)["max_cosine"] < 0.8
    by_order = sorted(bank.accepted + bank.refused, key=lambda c: c.order)
    accepted, similarity, _ = one_by_one(hashed([c.text for c in by_order]), bank.embeddings[:0], 0.8, 40)
    assert accepted == [c.order for c in bank.accepted]
    assert [c.similarity for c in by_order[1:]] == pytest.approx(similarity[1:], abs=1e-5)
    for c in by_order[1:]:
        assert float(hashed([c.nearest])[0] @ hashed([c.text])[0]) == pytest.approx(c.similarity, abs=1e-5)


def test_the_bank_is_the_same_however_the_agent_cuts_its_rounds():
    banks = [
        build_bank(GrammarAgent("embedded", 0, n), hashed, "moon", size=30, lambda_prompt=0.75, patience=60) for n in (1, 7, 64)
    ]
    for other in banks[1:]:
        for mine, theirs in zip(banks[0].accepted + banks[0].refused, other.accepted + other.refused, strict=True):
            assert (mine.text, mine.order, mine.nearest, mine.why) == (theirs.text, theirs.order, theirs.nearest, theirs.why)
            assert mine.similarity == pytest.approx(theirs.similarity, abs=1e-6)


def test_patience_counts_candidates_in_a_row_and_stops_in_the_middle_of_a_round():
    texts = ["a star", "a boat", "the big old star of the sea", "a", "b", "c", "yet another quite unlike star", "d"]
    bank = build([texts], patience=3)
    assert [c.text for c in bank.accepted] == ["a star", "the big old star of the sea"] and len(bank.refused) == 4
    assert bank.stopped == "patience" and len(bank.embeddings) == 2


@pytest.mark.parametrize("patience", [1, 2, 9])
def test_an_agent_that_falls_silent_costs_patience_and_no_crash(patience):
    agent = ScriptedAgent([["a star"]])
    bank = build_bank(agent, hashed, "star", size=3, lambda_prompt=0.9, patience=patience)
    assert len(agent.told) == 1 + patience and bank.stopped == "patience"
    silent = build_bank(ScriptedAgent([]), hashed, "star", size=3, lambda_prompt=0.9, patience=patience)
    assert silent.accepted == () and silent.acceptance_rate == 0 and "proposed nothing" in silent.warning


def test_a_short_bank_warns_with_cause_and_remedy_and_never_repeats_a_prompt():
    bank = build([["a red star", "a red star star", "red a star", "a boat"]], lambda_prompt=0.7, patience=3)
    assert len(bank.accepted) == 1
    for part in ("'star'", "1 of 10", "2 near duplicate", "1 off class", "raise lambda_prompt above 0.7", "another agent"):
        assert part in bank.warning
    off = build([["a boat"] + ["b"] * 9])
    assert "lambda_prompt" not in off.warning and "another agent" in off.warning


def test_the_agent_sees_what_was_accepted_and_what_was_refused_and_why():
    agent = ScriptedAgent([["a red star", "a boat"], ["two green stars at sea"], []])
    build_bank(agent, hashed, "star", size=3, lambda_prompt=0.9, patience=2)
    assert agent.told[:3] == [
        ([], []),
        (["a red star"], [("a boat", "off class")]),
        (["a red star", "two green stars at sea"], [("a boat", "off class")]),
    ]


def test_a_synonym_names_the_class_and_only_where_it_is_given():
    rounds = [["a pc mouse on a desk", "two trackballs", "a red computer mouse", "a mousetrap in a cellar", "a rat"]]

    def refused(**synonyms) -> list[tuple[str, str]]:
        limits = {"size": 9, "lambda_prompt": 0.99, "patience": 4}
        bank = build_bank(ScriptedAgent(rounds), hashed, "computer mouse", **limits, **synonyms)
        return [(c.text, c.why) for c in bank.refused]

    off = [("a mousetrap in a cellar", OFF_CLASS), ("a rat", OFF_CLASS)]
    assert refused(synonyms=("pc mouse", "trackball")) == off
    assert refused() == [("a pc mouse on a desk", OFF_CLASS), ("two trackballs", OFF_CLASS), *off]


def test_refused_texts_are_never_encoded_nor_any_text_twice():
    asked: list[str] = []

    def encode(texts):
        asked.extend(texts)
        return hashed(texts)

    build_bank(
        ScriptedAgent([["a star", "a boat", "", "A star"], ["a star", "a big star"]]),
        encode,
        "star",
        size=5,
        lambda_prompt=0.99,
        patience=9,
    )
    assert asked == ["a star", "a big star"]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"patience": 0}, {"lambda_prompt": 1.5}, {"lambda_prompt": math.nan}])
def test_impossible_settings_are_errors_that_name_them(wrong):
    with pytest.raises(UserError, match=rf"{next(iter(wrong))}.*expected"):
        build([["a star"]], **wrong)


# ----------------------------------------------------------------------------------------------- diversity
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from((3, 20, 60)))
def test_diversity_is_its_definition(seed, count, width):
    rows = cloud(seed, count, width)
    pairs = [float(rows[i] @ rows[j]) for i in range(count) for j in range(i)]
    shares = np.linalg.svd(rows / math.sqrt(count), compute_uv=False).astype(np.float64) ** 2
    got = diversity(rows)
    assert got["mean_cosine"] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert got["max_cosine"] == pytest.approx(max(pairs), abs=1e-5)
    assert got["vendi"] == pytest.approx(math.exp(-sum(s * math.log(s) for s in shares if s > 1e-9)), rel=1e-3)
    assert 1 - 1e-6 <= got["vendi"] <= count + 1e-6


def test_vendi_counts_the_different_prompts():
    basis = np.eye(8, dtype=np.float32)
    assert diversity(basis)["vendi"] == pytest.approx(8)
    assert diversity(np.repeat(basis[:2], 10, axis=0))["vendi"] == pytest.approx(2)
    assert diversity(np.repeat(basis[:1], 700, axis=0)) == pytest.approx({"mean_cosine": 1.0, "max_cosine": 1.0, "vendi": 1.0})
    one = diversity(basis[:1])
    assert one["vendi"] == pytest.approx(1) and math.isnan(one["mean_cosine"]) and math.isnan(one["max_cosine"])
    with pytest.raises(UserError, match="at least one"):
        diversity(basis[:0])


def test_the_reasons_are_distinct_words():
    reasons = {bank_module.EMPTY, bank_module.REPEATED, bank_module.OFF_CLASS, bank_module.NEAR}
    assert len(reasons) == 4 and "" not in reasons


def test_long_prompts_of_the_packaged_model_are_said_to_be_cut_at_its_eighteen_tokens():
    encoder = load_text_encoder("embedded-sd3")
    begin = "a big red star on sand and a big red star on sand and a big red star"  # with its two marks, eighteen tokens or more
    one, two = (f"{begin} {end * 60}"[:274] for end in ("moon ", "ball "))
    assert len(one) == len(two) == 274 and one != two and encoder.cut_at([one, "a star"]) == [18, 0]

    class Both:
        def propose(self, class_name, round_index, accepted, refused):
            return [one, two] if round_index == 0 else []

    bank = build_bank(
        Both(),
        lambda texts: unit_rows(encoder.encode(texts).pooled),
        "star",
        size=2,
        lambda_prompt=0.97,
        patience=2,
        cut_at=encoder.cut_at,
    )
    assert [c.text for c in bank.accepted] == [one] and [(c.text, c.why) for c in bank.refused] == [(two, "cut at 18 tokens")]


def test_a_prompt_that_the_encoder_cuts_is_not_called_a_near_duplicate():
    texts = ["a star on sand in the morning light", "a star on sand in the evening rain", "a star on sand"]

    class Three:
        def propose(self, class_name, round_index, accepted, refused):
            return texts if round_index == 0 else []

    def encode(some):
        return unit_rows(np.stack([np.eye(8, dtype=np.float32)[0] for _ in some]))  # the first four words are all it reads

    def cut_at(some):
        return [4 if len(text.split()) > 4 else 0 for text in some]

    limits = {"size": 3, "lambda_prompt": 0.9, "patience": 4}
    bank = build_bank(Three(), encode, "star", **limits, cut_at=cut_at)
    assert [c.why for c in (*bank.accepted, *bank.refused)] == ["", "cut at 4 tokens", NEAR]
    assert "1 cut at 4 tokens" in bank.warning
    assert [c.why for c in build_bank(Three(), encode, "star", **limits).refused] == [NEAR, NEAR]
