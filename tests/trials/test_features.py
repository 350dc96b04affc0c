"""Trials whose APF and APR compare by another network: they equal a run, and make what the network changes and nothing else."""

from __future__ import annotations

import pytest

from syn4seg.trials.cache import StageCache
from tests.shared_features import tiny_dinov2
from tests.shared_trials import changed, last, trials, whole

KEPT = {"kept", "relabeled", "masks", "label", "classifier"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_dinov2(tmp_path_factory.mktemp("tiny"))


def _made(cache):
    return {kind for (kind, how), count in cache.counts.items() if how == "made" and count}


def test_a_trial_with_another_network_equals_a_run_and_remakes_what_it_compares(finished, warm, small, tiny, tmp_path):
    _, run, _ = finished
    words = ("data.draws=1", f"labeling.features={tiny}", "labeling.lambda_keep={support_quantile: 0.1}")
    config = changed(small, *words)
    _, results = whole(config, tmp_path / "run")
    cache = StageCache(warm)
    found = last(trials(cache, run), config)
    for name in ("novel", "base"):
        assert repr(float(found[0][name])) == repr(results["rows"]["syn4seg"][name]["mean"]), name
    assert _made(cache) == {"features", "measured", *KEPT} and results["protocol"]["features"] == tiny

    again = StageCache(warm)
    last(trials(again, run), config)
    assert _made(again) == set()
    for word, made in (
        ("labeling.feature_size=48", {"features", "measured", *KEPT}),
        ("labeling.beta=0.1", KEPT - {"kept"}),
        ("labeling.base_prototype_images=5", {"real", "registration", "measured", "draft", *KEPT}),
    ):
        cache = StageCache(warm)
        last(trials(cache, run), changed(small, *words, word))
        assert _made(cache) == made, word


def test_other_weights_in_the_same_folder_are_another_network(finished, warm, small, tmp_path):
    from safetensors.torch import load_file, save_file

    _, run, _ = finished
    folder = tiny_dinov2(tmp_path / "net")
    config = changed(small, "data.draws=1", f"labeling.features={folder}")
    last(trials(StageCache(warm), run), config)
    path = tmp_path / "net" / "model.safetensors"
    tensors = {k: v + 0.1 for k, v in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    cache = StageCache(warm)
    last(trials(cache, run), config)
    assert {"features", "measured", "kept"} <= _made(cache) and not _made(cache) & {"dense", "registration", "draft"}
