"""The word lists: no thing is of two kinds, every listed thing is a class of some data set, no list repeats a word."""

from __future__ import annotations

from syn4seg.data import coco, embedded, pascal
from syn4seg.prompts.english import spoken
from syn4seg.prompts.words import COUNTS, KINDS, LIGHTS, OPENINGS, THING, VIEWS


def test_every_listed_thing_is_a_class_as_it_is_spoken_and_of_one_kind():
    names = [name for kind in KINDS for name in kind.names]
    assert len(names) == len(set(names))
    classes = *pascal.CLASSES, *coco.CLASSES, *embedded.CLASSES, "aeroplane", "motorbike"  # as the files of VOC spell them
    assert set(names) <= {spoken(name).lower() for name in classes}


def test_no_list_repeats_a_word():
    lists = (OPENINGS, COUNTS, VIEWS, LIGHTS, *(words for k in (*KINDS, THING) for words in (k.adjectives, k.states, k.places)))
    assert [words for words in lists if not all(words) or len(set(words)) < len(words)] == []
