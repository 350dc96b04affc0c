"""Keys of the cache: exactly the entries that a changed key or changed code concerns are made anew."""

from __future__ import annotations

import pytest

from syn4seg.config import fingerprint as fingerprints
from syn4seg.config.tree import keys
from syn4seg.trials.cache import StageCache
from tests.shared_trials import changed, last, trials

LABEL = {"label", "classifier"}
MASKS = {"masks", *LABEL}
RELABELED = {"relabeled", *MASKS}
KEPT = {"kept", *RELABELED}
DRAFT = {"draft", *KEPT}
ROUND_0 = {"registration", *DRAFT}
CHANGES = {
    **dict.fromkeys(("labeling.lambda_keep=0.2", "labeling.min_region=3", "labeling.tau_base=0.7"), KEPT),
    **dict.fromkeys(("labeling.tau_background=0.5", "labeling.rivals=false", "labeling.tau=0.2", "labeling.target_odds=2"), KEPT),
    **dict.fromkeys(("labeling.mask_others=true", "labeling.target_logit=1", "labeling.seed_share=0.1"), DRAFT),
    **dict.fromkeys(("labeling.beta=0.1", "labeling.theta=0.9"), RELABELED),
    **dict.fromkeys(("labeling.min_target=0.02", "labeling.max_target=0.6"), RELABELED),
    "labeling.base_prototype_images=5": {"real", *ROUND_0},
    **dict.fromkeys(("refinement.margin=3", "refinement.hints=[box,point]"), MASKS),
    **{key: set() for key in ("labeling.feature_weights=/nowhere", "labeling.feature_size=32")},  # of another network
    **dict.fromkeys(("refinement.band_width=1", "refinement.min_agreement=0.9"), LABEL),
    "refinement.images_per_pass=2": {"embedding", *MASKS},
    **dict.fromkeys(("novel.steps=7", "novel.lr=0.02", "novel.support_batch=2", "novel.synthetic_batch=4"), ROUND_0),
    **dict.fromkeys(("novel.replay_batch=2", "novel.background_weight=0.5", "novel.distillation=0.5"), ROUND_0),
    **dict.fromkeys(("novel.ramp=0.5", "novel.merge_synthetic=true", "novel.label_stride=2"), ROUND_0),
    "novel.replay_images=5": ROUND_0,
    **dict.fromkeys(("novel.base_data=none", "novel.base_confidence=0.5", "novel.inverted_cells=5"), ROUND_0),
    **{key: set() for key in ("novel.trains=all", "novel.rows=[oracle]")},
    **{key: {"classifier"} for key in ("novel.synthetic_weight=0.5", "novel.confidence_weight=0.5")},
    "data.shots=2": {"support", "real", *ROUND_0},
    "data.min_support_area=0.021": {"support"},
    "data.min_support_pixels=300": {"support", "real", *ROUND_0},
    "data.only_one_novel=true": {"support", "real", *ROUND_0},
    "data.support_draw=pop": {"support", "real", *ROUND_0},
    "data.base_in_support=kept": {"support", *ROUND_0},
    "data.val_images=8": {"real", "classifier"},
    "data.draws=1": set(),
    "evaluation.space=canvas": {"classifier"},
    "evaluation.queries=5": {"real", "classifier"},  # one draw: five images are another batch of the network than six
    **{key: set() for key in ("evaluation.background_in_base=true", "evaluation.mean=all_classes")},
    "evaluation.baselines=[bcm]": set(),
    **{key: set() for key in ("evaluation.rows=[apr]", "evaluation.controls=true", "evaluation.masks=/nowhere")},
    "evaluation.by_name=/nowhere": set(),
}
"""A changed key -> the kinds of entries that are made anew; all others are found."""
NOT_HERE = {
    **dict.fromkeys(
        ("data.source", "data.root", "data.fold", "data.train_list", "data.masks", "data.exif"), "another data set or base stage"
    ),
    **dict.fromkeys(("data.train_images", "data.support_reserve"), "changes the base stage"),
    "data.support_from": "draws from the val list, which has too few images here",
    "data.first_draw": "other draws, so no entry of a draw is shared",
    "refinement.model": "needs other weights",
    "novel.base_photos": "a trial reads the data set alone",
    "labeling.features": "needs another network, see test_features.py",
    **dict.fromkeys(("labeling.rounds", "labeling.support_share"), "a trial labels once"),
}
"""Keys that this test cannot change, and why; sections of prompts, images and base stage change the run itself."""


def test_every_key_that_a_trial_reads_is_changed_here_or_says_why_not():
    read = {key for key in keys() if key.partition(".")[0] in ("data", "labeling", "refinement", "novel", "evaluation")}
    assert {word.partition("=")[0] for word in CHANGES} | set(NOT_HERE) == read


@pytest.mark.parametrize("word", CHANGES)
def test_a_trial_makes_exactly_the_entries_that_its_keys_change_and_scores_as_a_cold_one(finished, warm, small, word, tmp_path):
    _, run, _ = finished
    cache, config = StageCache(warm), changed(small, "data.draws=1", word)
    scores = last(trials(cache, run), config)
    assert {kind for (kind, how), count in cache.counts.items() if how == "made" and count} == CHANGES[word]
    assert repr(last(trials(StageCache(tmp_path / "cold"), run), config)) == repr(
        scores
    )  # as texts: a class that is absent has nan


@pytest.mark.parametrize(
    ("module", "made"),
    [
        ("syn4seg.labeling.filtering", DRAFT),
        ("syn4seg.labeling.relabeling", RELABELED),
        ("syn4seg.labeling.refinement", MASKS),
        ("syn4seg.models.sam", {"embedding", *MASKS}),
        ("syn4seg.models.sam_transformers", {"embedding", *MASKS}),
        ("syn4seg.trials.trial", {"classifier"}),
    ],
)
def test_an_entry_ends_with_the_code_that_made_it(finished, warm, small, monkeypatch, module, made):
    config, run, _ = finished
    stored = trials(StageCache(warm), run)
    last(stored, config)  # its run is found before the code changes
    source = fingerprints._source_of

    def edited(name):
        parents = name == module or module.startswith(f"{name}.")
        return source(name) + (f"edited {module}" if parents else "")

    monkeypatch.setattr(fingerprints, "_source_of", edited)
    monkeypatch.setattr("syn4seg.trials.trial.run_key", lambda config: next(iter(stored.contexts)))
    cache = StageCache(warm)
    stored.cache = cache
    last(stored, config)
    assert {kind for (kind, how), count in cache.counts.items() if how == "made" and count} == made
