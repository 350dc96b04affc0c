"""A later round: prototypes in another network's features are blended with means of what the round before labelled."""

from __future__ import annotations

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.stages.labels import Enhancer
from syn4seg.stages.similarity import feature_network
from syn4seg.stages.support import Registration
from tests.shared_features import tiny_dinov2
from tests.shared_trials import whole


@pytest.mark.slow
def test_prototypes_of_other_features_are_blended_with_what_the_round_before_labelled(small, tmp_path):
    words = f"labeling.features={tiny_dinov2(tmp_path / 'net')}", "labeling.lambda_keep={support_quantile: 0.1}"
    less = "synthesis.class_name_bank=false", "evaluation.rows=[syn4seg]", "data.val_images=2", "labeling.base_prototype_images=8"
    config = load(None, [*small, *words, *less, "labeling.rounds=2"])
    run, _ = whole(config, tmp_path / "run")
    before, after = (Registration.load(run.draw(0), number) for number in (1, 2))
    network, earlier = feature_network(config, "cpu"), run.round(1).draw(0)
    assert before.measured is not None and after.measured is not None and network is not None
    wanted = before.measured.astype(np.float64)
    sums = dict.fromkeys(range(13, 17), 0.0)
    for row in earlier.records():
        if not row["reason"]:
            ((sample, image),) = earlier.read([row])
            label, features = sample.labels["label"], network(image)
            cell, k = label.shape[0] // features.shape[1], row["class_id"]
            sums[k] = sums[k] + sum(features[:, y // cell, x // cell] for y, x in zip(*np.nonzero(label == k), strict=True))
    changed = [k for k, total in sums.items() if np.any(total)]
    for k in changed:
        blend = 0.3 * wanted[k] + 0.7 * sums[k] / np.linalg.norm(sums[k])
        wanted[k] = blend / np.linalg.norm(blend)
    assert len(changed) >= 2 and np.allclose(after.measured, wanted, atol=1e-5)
    assert not np.allclose(after.measured[changed], before.measured[changed], atol=1e-3)
    assert after.thresholds == before.thresholds
    assert np.array_equal(Enhancer.from_run(run, 0, config, "cpu").measured, after.measured)
