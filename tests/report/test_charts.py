"""Charts of many classes."""

from __future__ import annotations

import numpy as np

from syn4seg.report import charts


def test_two_hundred_classes_have_charts():
    names = [f"class {i}" for i in range(200)]
    spread = {"mean": 0.5, "std": 0.1, "n": 2}
    rows = {row: dict.fromkeys(names, spread) | {"class 7": {"mean": None, "std": None, "n": 0}} for row in ("a", "b")}
    svg = charts.per_class(rows, names, {"a": "A", "b": "B"})
    assert all(f">{name}<" in svg for name in names)
    rng = np.random.default_rng(0)
    many = {name: (rng.random(5), rng.random(5) > 0.5, 0.5) for name in names}
    assert "all classes" in charts.similarity(many)
