"""Gains paired by draw."""

from __future__ import annotations

import pytest

from syn4seg.stages.gains import METRICS, paired_gains


def figures(*novel: float) -> list[dict[str, float]]:
    return [dict.fromkeys(METRICS, value) for value in novel]


def test_a_gain_is_the_mean_of_the_differences_within_draws_with_their_spread():
    rows = {
        "support_only": figures(0.2, 0.6),
        "hdig_raw": figures(0.3, 0.6),
        "syn4seg": figures(0.4, 0.7),
        "oracle": figures(0.6, 0.8),
    }
    gain = paired_gains(rows)["syn4seg"]
    assert gain["over_support_only"]["novel"] == {
        "mean": pytest.approx(0.15),
        "std": pytest.approx(0.05 * 2**0.5),
        "n": 2,
        "won": 2,
    }
    assert gain["over_hdig_raw"]["novel"]["mean"] == pytest.approx(0.1)
    assert gain["share_of_oracle"]["novel"] == pytest.approx(0.15 / 0.3)
    assert "share_of_oracle" not in paired_gains(rows)["oracle"] and "support_only" in paired_gains(rows)


def test_a_draw_that_loses_is_not_won_and_an_oracle_without_a_gain_leaves_no_share():
    rows = {"support_only": figures(0.5, 0.5), "syn4seg": figures(0.4, 0.7), "oracle": figures(0.5, 0.4)}
    gain = paired_gains(rows)["syn4seg"]
    assert gain["over_support_only"]["novel"]["won"] == 1
    assert gain["share_of_oracle"] == {"novel": None, "harmonic": None}
    assert paired_gains({"syn4seg": figures(0.1)}) == {}


def test_a_draw_without_a_novel_class_counts_for_nothing():
    rows = {"support_only": figures(float("nan"), 0.5), "syn4seg": figures(0.4, 0.7)}
    assert paired_gains(rows)["syn4seg"]["over_support_only"]["novel"]["n"] == 1
