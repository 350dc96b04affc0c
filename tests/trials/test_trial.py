"""A trial computes what a run computes, and nothing that its keys leave as it was."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config import fingerprint as fingerprints
from syn4seg.config.loading import load
from syn4seg.config.tree import keys
from syn4seg.stages.checks import check
from syn4seg.store.rundir import RunDir
from syn4seg.trials.cache import StageCache
from syn4seg.trials.trial import Trials

SETTINGS = ("data.draws=2", "novel.steps=6")


def whole(config, root):
    """A finished run of a configuration."""
    from actors.pipeline import Pipeline
    from tune.objective import SilentDisplay

    run = RunDir(root)
    run.open(config)
    dataset, fold = check(config, run)
    pipeline = Pipeline(config, run, dataset, fold, SilentDisplay())
    return run, pipeline.run_all()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    config = load(None, [*small, *SETTINGS])
    run, results = whole(config, tmp_path_factory.mktemp("trial") / "run")
    return config, run, results


def trials(cache, run, validation=None):
    def never(config, path):
        raise AssertionError("no trial here changes prompts, images or base checkpoint")

    return Trials(cache, run, validation, never, "cpu")


def changed(small, *words):
    return load(None, [*small, *SETTINGS, *words])


def last(made, config, reports=2):
    return list(made.scores(config, reports))[-1]


def test_a_trial_scores_what_the_run_scored_and_labels_what_it_labelled(finished, tmp_path):
    config, run, results = finished
    made = trials(StageCache(tmp_path / "cache"), run)
    found = last(made, config)
    for name in ("base", "novel", "mean", "harmonic", "total"):
        mean = np.mean([found[draw][name] for draw in (0, 1)])
        assert mean == pytest.approx(results["rows"]["syn4seg"][name]["mean"], abs=1e-12), name


LABEL = {"label", "classifier"}
MASKS = {"masks", *LABEL}
RELABELED = {"relabeled", *MASKS}
KEPT = {"kept", *RELABELED}
ROUND_0 = {"registration", "draft", *KEPT}
CHANGES = {
    **dict.fromkeys(("labeling.lambda_keep=0.2", "labeling.min_region=3", "labeling.tau_base=0.7"), KEPT),
    "labeling.tau_background=0.5": KEPT,
    **dict.fromkeys(("labeling.beta=0.1", "labeling.tau=0.2", "labeling.theta=0.9"), RELABELED),
    **dict.fromkeys(("labeling.min_target=0.02", "labeling.max_target=0.6"), RELABELED),
    "labeling.base_prototype_images=5": {"real", *ROUND_0},
    "refinement.margin=3": MASKS,
    **dict.fromkeys(("refinement.band_width=1", "refinement.min_agreement=0.9"), LABEL),
    "refinement.images_per_pass=2": {"embedding", *MASKS},
    **dict.fromkeys(("novel.steps=7", "novel.lr=0.02", "novel.support_batch=2", "novel.synthetic_batch=4"), ROUND_0),
    **dict.fromkeys(("novel.replay_batch=2", "novel.background_weight=0.5", "novel.distillation=0.5"), ROUND_0),
    "novel.ramp=0.5": ROUND_0,
    "novel.replay_images=5": ROUND_0,
    **{key: {"classifier"} for key in ("novel.synthetic_weight=0.5", "novel.confidence_weight=0.5")},
    "data.shots=2": {"support", "real", *ROUND_0},
    "data.min_support_area=0.05": {"support"},
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
}
"""A changed key -> the kinds of entries that are made anew; all others are found."""
NOT_HERE = {
    **dict.fromkeys(("data.source", "data.root", "data.fold", "data.train_list", "data.masks"), "another data set or base stage"),
    **dict.fromkeys(("data.train_images", "data.support_reserve"), "changes the base stage"),
    "data.support_from": "draws from the val list, which has too few images here",
    "data.first_draw": "other draws, so no entry of a draw is shared",
    "refinement.model": "needs other weights",
}
"""Keys that this test cannot change, and why; sections of prompts, images and base stage change the run itself."""


def test_every_key_that_a_trial_reads_is_changed_here_or_says_why_not():
    read = {key for key in keys() if key.partition(".")[0] in ("data", "labeling", "refinement", "novel", "evaluation")}
    assert {word.partition("=")[0] for word in CHANGES} | set(NOT_HERE) == read


@pytest.fixture(scope="module")
def warm(finished, tmp_path_factory):
    config, run, _ = finished
    cache = tmp_path_factory.mktemp("warm")
    last(trials(StageCache(cache), run), config)
    return cache


@pytest.mark.parametrize("word", CHANGES)
def test_a_trial_makes_exactly_the_entries_that_its_keys_change_and_scores_as_a_cold_one(finished, warm, small, word, tmp_path):
    _, run, _ = finished
    cache, config = StageCache(warm), changed(small, "data.draws=1", word)
    scores = last(trials(cache, run), config)
    assert {kind for (kind, how), count in cache.counts.items() if how == "made" and count} == CHANGES[word]
    assert repr(last(trials(StageCache(tmp_path / "cold"), run), config)) == repr(
        scores
    )  # as texts: a class that is absent has nan


def test_a_trial_of_known_entries_makes_none(finished, warm, small):
    _, run, _ = finished
    for _ in range(2):
        cache = StageCache(warm)
        last(trials(cache, run), changed(small, "labeling.beta=0.15"))
    assert not [kind for (kind, how), count in cache.counts.items() if how == "made" and count]


@pytest.mark.parametrize(
    ("module", "made"),
    [
        ("syn4seg.labeling.filtering", KEPT),
        ("syn4seg.labeling.relabeling", RELABELED),
        ("syn4seg.labeling.refinement", MASKS),
        ("syn4seg.models.sam", {"embedding", *MASKS}),
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


def test_a_changed_trial_equals_a_run_with_that_configuration(finished, warm, small, tmp_path):
    _, run, _ = finished
    config = changed(small, "labeling.lambda_keep=0.3", "labeling.beta=0.2", "refinement.band_width=2", "data.draws=1")
    _, results = whole(config, tmp_path / "run")
    found = last(trials(StageCache(warm), run), config)
    assert found[0]["novel"] == pytest.approx(results["rows"]["syn4seg"]["novel"]["mean"], abs=1e-12)
    assert found[0]["base"] == pytest.approx(results["rows"]["syn4seg"]["base"]["mean"], abs=1e-12)


def test_a_damaged_or_pruned_cache_changes_no_score(finished, warm, small):
    config, run, _ = finished
    wanted = repr(last(trials(StageCache(warm), run), config))  # as texts: a class that is absent has nan
    for number, path in enumerate(sorted(warm.glob("*/*.bin"))):
        if number % 2:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.unlink()
    cache = StageCache(warm)
    assert repr(last(trials(cache, run), config)) == wanted
    assert sum(count for (_, how), count in cache.counts.items() if how == "made") > 5


def test_scores_while_training_do_not_change_the_end(finished, warm, small):
    config, run, _ = finished
    once = list(trials(StageCache(warm), run).scores(config, 1))
    often = list(trials(StageCache(warm), run).scores(config, 3))
    assert len(once) == 1 and len(often) == 3 and repr(once[-1]) == repr(often[-1])


def test_a_trial_that_changes_prompts_makes_a_run_of_its_own_once(finished, small, tmp_path):
    from tune.objective import make_run

    _, run, _ = finished
    config = changed(small, "prompts.bank_size=2", "data.draws=1")
    for _ in range(2):
        cache = StageCache(tmp_path / "cache")
        made = Trials(cache, run, None, lambda c, path: make_run(c, path, run, "cpu"), "cpu")
        found = last(made, config)
    assert cache.counts["runs", "made"] == 0 and len(list((tmp_path / "cache" / "runs").iterdir())) == 1
    _, results = whole(config, tmp_path / "run")
    assert found[0]["novel"] == pytest.approx(results["rows"]["syn4seg"]["novel"]["mean"], abs=1e-12)


def test_validation_images_are_scored_and_the_test_list_is_not_opened(finished, warm, small, monkeypatch):
    config, run, _ = finished
    made = trials(StageCache(warm), run, ["train-000003", "train-000007", "train-000020"])
    seen = []
    opened = type(made._context(config).dataset).image
    monkeypatch.setattr(type(made._context(config).dataset), "image", lambda self, i: seen.append(i) or opened(self, i))
    assert 0 <= last(made, config)[0]["base"] <= 1
    assert not [i for i in seen if i.startswith("val-")]
