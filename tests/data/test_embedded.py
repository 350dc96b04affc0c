"""The embedded world: its sentences name what they are about, and are drawn as they say."""

from __future__ import annotations

import pytest

from syn4seg.data import embedded
from syn4seg.prompts.english import mentions
from syn4seg.prompts.grammar import GrammarAgent


def test_the_embedded_world_draws_what_the_agent_asks_for():
    for name in embedded.CLASSES:
        for i, prompt in enumerate(GrammarAgent("embedded", 0, 24).propose(name, 0, [], [])):
            scene = embedded.scene_of_prompt(prompt, i, company=0)
            subject, _, company = prompt.partition(" beside ")
            words, of_subject = subject.split(), [t for t in scene.things if t.name == name]
            assert len(of_subject) == embedded.COUNTS[words[0]] and scene.background == prompt.split()[-1]
            for thing in of_subject:
                assert thing.colour in words
                assert [w for w in words if w in embedded.PATTERNS] in ([], [thing.pattern])
            others = [f"{t.pattern} {t.colour} {t.name}" for t in scene.things if t.name != name]
            assert others == ([company.removeprefix("a ").partition(" on ")[0]] if company else [])


def test_company_comes_in_its_shares_asked_and_unasked_and_is_mostly_the_companion():
    asked = [p for n in embedded.CLASSES for p in GrammarAgent("embedded", 0, 100).propose(n, 0, [], [])]
    assert abs(sum(" beside " in p for p in asked) / len(asked) - embedded.COMPANY) < 0.05
    beside = [[t.name for t in embedded.scene_of_prompt("a star", i).things if t.name != "star"] for i in range(800)]
    shown = [names[0] for names in beside if names]
    assert abs(len(shown) / 800 - embedded.COMPANY) < 0.05 and all(len(names) <= 1 for names in beside)
    assert abs(shown.count("cross") / len(shown) - embedded.FAITHFUL) < 0.06 and len(set(shown)) == 15
    assert all(embedded.COMPANIONS[embedded.COMPANIONS[n]] == n != embedded.COMPANIONS[n] for n in embedded.CLASSES)
    fold_of = {k: f for f, fold in enumerate(embedded.FOLDS) for k in fold}
    indices = {n: i + 1 for i, n in enumerate(embedded.CLASSES)}
    assert all(fold_of[indices[n]] == fold_of[indices[embedded.COMPANIONS[n]]] for n in embedded.CLASSES)


def test_scenes_of_the_data_set_show_companions_by_habit_and_no_class_that_was_not_asked_for():
    scenes = [embedded.sample_scene(embedded.seeded("habit", i)) for i in range(900)]
    pairs = [(s.things[0].name, s.things[1].name) for s in scenes if len(s.things) > 1]
    share = sum(embedded.COMPANIONS[a] == b for a, b in pairs) / len(pairs)
    assert abs(share - (embedded.HABIT + (1 - embedded.HABIT) / 16)) < 0.06
    some = ("ball", "moon", "heart")
    named = {t.name for i in range(60) for t in embedded.sample_scene(embedded.seeded("some", i), some).things}
    assert named == set(some)


@pytest.mark.parametrize("name", embedded.CLASSES)
def test_the_plural_in_a_sentence_of_the_embedded_world_names_its_class(name):
    sentence = embedded.prompt_of(name, colour="red", pattern="plain", size="big", pose="upright", background="sand", count="two")
    assert mentions(sentence, name)
