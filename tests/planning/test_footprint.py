"""Memory and disk of every stage, before anything is loaded."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.planning.footprint import memory_of
from tests.shared_planning import FACTS, GIB, TRUE, lines


def test_the_paper_s_models_give_sane_figures():
    found = lines(load(None, TRUE))
    assert found["synthesis"].weights / GIB == pytest.approx(15.33, abs=0.01), "transformer, positions and VAE"
    assert found["encoding"].weights / GIB == pytest.approx(25.6 - 15.2, abs=0.1)
    assert 15.4 < found["synthesis"].memory / GIB < 32 and found["refinement"].memory / GIB < 10
    assert found["labeling"].weights / GIB == pytest.approx(0.245, abs=0.01) and 8 < found["base"].memory / GIB < 32
    assert 3 < found["synthesis"].unit_seconds < 6, "28 steps at 1024 pixels on an H100"
    assert found["encoding"].disk == (5 * 49 + 1) * (333 * 4096 + 2048) * 2
    assert found["synthesis"].disk == pytest.approx(480 * 1024**2 * 14 / 8)


def test_vae_slicing_and_smaller_batches_need_less_memory():
    def synthesis(*words):
        return sum(memory_of(load(None, [*TRUE, *words]), FACTS)["synthesis"])

    assert synthesis("synthesis.vae_slicing=true") < synthesis() < synthesis("synthesis.batch=8")
    assert synthesis("placement.device=cpu") > 1.9 * synthesis(), "float32 on a CPU"


def test_another_network_s_features_are_in_the_labeling_actor_s_memory_and_time(tmp_path):
    from syn4seg.planning.sizes_vision import feature_size
    from syn4seg.planning.workload import workload
    from tests.shared_features import tiny_dinov2

    name = tiny_dinov2(tmp_path)
    words = f"labeling.features={name}", "labeling.feature_size=128"
    (weights, more), (with_it, more_with_it) = (memory_of(load(None, [*TRUE, *w]), FACTS)["labeling"] for w in ((), words))
    size = feature_size(name, 128)
    assert with_it - weights == size.part.bytes(4) > 0 and more_with_it - more == 12 * size.largest > 0
    plain, other = (next(w for w in workload(load(None, [*TRUE, *w]), FACTS) if w.stage == "labeling") for w in ((), words))
    assert other.flops - plain.flops == size.flops > 0
    assert plain.what.items() < other.what.items(), "a rate without the network does not stand for one with it"
