"""The embedded world: its sentences name what they are about, and are drawn as they say."""

from __future__ import annotations

import pytest

from syn4seg.data import embedded
from syn4seg.prompts.english import mentions
from syn4seg.prompts.grammar import GrammarAgent


def test_the_embedded_world_draws_what_the_agent_asks_for():
    for name in embedded.CLASSES:
        for i, prompt in enumerate(GrammarAgent("embedded", 0, 12).propose(name, 0, [], [])):
            scene = embedded.scene_of_prompt(prompt, i)
            thing, words = scene.things[0], prompt.split()
            assert {t.name for t in scene.things} == {name}
            assert thing.colour in words and scene.background in words
            assert len(scene.things) == embedded.COUNTS[words[0]]
            said = [w for w in words if w in embedded.PATTERNS]
            assert said in ([], [thing.pattern])


@pytest.mark.parametrize("name", embedded.CLASSES)
def test_the_plural_in_a_sentence_of_the_embedded_world_names_its_class(name):
    sentence = embedded.prompt_of(name, colour="red", pattern="plain", size="big", pose="upright", background="sand", count="two")
    assert mentions(sentence, name)
