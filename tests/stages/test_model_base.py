"""A trained model as base checkpoint: its classes in its own order, seen as it sees images; anything else is refused by key."""

from __future__ import annotations

import json

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.planning.sizes_vision import model_size, segmenter_size
from syn4seg.stages.model_base import model_facts, read_base_model
from tests.shared_extension import BASE, write_base_model


def test_a_model_is_read_where_every_key_agrees_and_refused_by_the_key_that_does_not(tmp_path):
    write_base_model(tmp_path)
    words = [f"base.checkpoint={tmp_path}", f"base.classes={json.dumps(BASE)}"]
    segmenter, found = read_base_model(load(None, words))
    facts = model_facts(found)
    assert len(segmenter.weight) == 13 and facts["sha256"] == found.weights.sha256
    assert str(tmp_path) not in json.dumps(facts) and "12 classes" in facts["notes"][0]
    assert model_size(str(tmp_path), 15, 64).flops == segmenter_size("embedded", 15, 128, (1, 2, 3, 6), 64).flops
    wrong = {f"base.classes={json.dumps(BASE[::-1])}": "in their order", "segmenter.size=96": "set segmenter.size=64"}
    wrong |= {"segmenter.cosine=true": "set segmenter.cosine=False", "segmenter.canvas=diam": "set segmenter.canvas=plain"}
    for word, message in wrong.items():
        with pytest.raises(UserError, match=message):
            read_base_model(load(None, [*words, word]))
    with pytest.raises(UserError, match="no class is base"):
        load(None, ["data.fold=all", "data.source=folder", "base.checkpoint=train"])
