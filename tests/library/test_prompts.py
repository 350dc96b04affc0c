"""The prompt bank of the library decides as the bank of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import syn4seg
from syn4seg.labeling.prototypes import normalize
from syn4seg.prompts.bank import NEAR, OFF_CLASS, build_bank, unit_rows
from syn4seg.seeds import seeded


def case(seed: object):
    """A draft of three classes with unlabeled pixels, features on a grid, unit prototypes, and the segmenter's confidence."""
    rng = seeded("library", seed)
    label = np.kron(rng.choice(np.array([0, 0, 1, 4, 5, 255], np.uint8), (6, 7)), np.ones((4, 4), np.uint8))
    features = rng.normal(size=(8, 12, 14)).astype(np.float32)
    prototypes = {k: normalize(rng.normal(size=8)) for k in (0, 1, 4, 5)}
    return label, features, prototypes, rng.random(label.shape)


LABEL, FEATURES, PROTOTYPES, _ = case("mistakes")


# --------------------------------------------------------------------------------------------------- prompts
class Listed:
    """A prompt agent that proposes a list, once."""

    def __init__(self, texts):
        self.texts = texts

    def propose(self, class_name, round_number, accepted, refused):
        return self.texts if round_number == 0 else []


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_bank_decides_as_the_bank_of_a_run_in_any_batches(as_tensor, batch):
    rng = seeded("library", "bank")
    texts = [f"a dog number {i}" for i in range(60)] + ["", "A DOG number 3", "a cat", "dog " * 100]
    rows = dict(zip(texts, rng.normal(size=(len(texts), 6)) + 1, strict=True))
    inside = build_bank(
        Listed(texts), lambda t: unit_rows(np.stack([rows[x] for x in t])), "dog", size=1000, lambda_prompt=0.9, patience=1000
    )
    given = np.stack(list(rows.values()))
    told = []
    bank = syn4seg.PromptBank(0.9, class_name="dog")
    found = bank.offer(texts, torch.from_numpy(given) if as_tensor else given, batch=batch, progress=lambda *at: told.append(at))
    encoded = syn4seg.PromptBank(0.9, class_name="dog", encoder=lambda t: np.stack([rows[x] for x in t]))
    for text in texts:
        encoded.offer(text)
    for one in (bank, encoded):
        for mine, theirs in ((one.accepted, inside.accepted), (one.refused, inside.refused)):
            assert [(c.text, c.order, c.nearest, c.why) for c in mine] == [(c.text, c.order, c.nearest, c.why) for c in theirs]
            assert [c.similarity for c in mine] == pytest.approx([c.similarity for c in theirs], abs=1e-6)
        np.testing.assert_allclose(one.embeddings, inside.embeddings, atol=1e-7)
    assert found == sorted(bank.accepted + bank.refused, key=lambda c: c.order) and any(c.why == NEAR for c in found)
    assert bank.prompts == [c.text for c in found if not c.why]
    assert isinstance(bank.embeddings, torch.Tensor if as_tensor else np.ndarray)
    assert told[-1] == (len(texts), len(texts)) and len(told) == -(-len(texts) // batch)


def test_a_bank_takes_a_synonym_for_the_name():
    texts, rows = ["a computer mouse", "two trackballs", "a rat"], np.eye(3)
    bank = syn4seg.PromptBank(0.9, class_name="computer mouse", synonyms=["trackball"])
    assert [c.why for c in bank.offer(texts, rows)] == ["", "", OFF_CLASS]
    assert [c.why for c in syn4seg.PromptBank(0.9, class_name="computer mouse").offer(texts, rows)] == ["", OFF_CLASS, OFF_CLASS]


def test_a_bank_whose_encoder_failed_is_as_it_was():
    answers = iter([RuntimeError("no connection"), np.eye(2)])

    def encoder(texts):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    bank = syn4seg.PromptBank(encoder=encoder)
    with pytest.raises(RuntimeError):
        bank.offer(["a dog", "a cat"])
    assert [c.why for c in bank.offer(["a dog", "a cat"])] == ["", ""]


@pytest.mark.parametrize("how", ["given", "encoded"])
def test_a_bank_keeps_nothing_of_the_callers_embeddings_but_their_kind(how):
    for given in (np.eye(3), torch.eye(3)):
        bank = syn4seg.PromptBank(encoder=lambda _, given=given: given)
        bank.offer(["a", "b", "c"], given if how == "given" else None)
        kept = bank._kind
        held = kept.untyped_storage().nbytes() if isinstance(kept, torch.Tensor) else kept.nbytes
        assert held == 0 and getattr(kept, "base", None) is None
        assert type(bank.embeddings) is type(given) and bank.embeddings.shape == (3, 3)
