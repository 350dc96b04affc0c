"""Which row of a network is which class of a data set; and the background, which is everything else that the network knows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from syn4seg.errors import UserError

PULL = 1e-4
"""Weight of the squared distance from the mean row, on features of unit spread: it decides where the images do not."""


def match_rows(names: Sequence[str] | None, labels: int, wanted: Sequence[str], given: Mapping[str, str | int]) -> dict[str, int]:
    """Return the row of each wanted class that the network knows.

    Names are compared without case, spaces and punctuation (VOC's "diningtable" is "dining table"). A label may list synonyms,
    split by commas or semicolons, which count where no whole label is meant.

    Args:
        names: of the network's labels by row; None where it has none.
        labels: its number of rows.
        given: class -> what the network calls it, or its row.

    Raises:
        UserError: a given name or row that the network does not have, a name that several rows have, or a row for two classes.
    """
    labelled: dict[str, set[int]] = {}
    synonyms: dict[str, set[int]] = {}
    for row, label in enumerate(names or ()):
        labelled.setdefault(_plain(label), set()).add(row)
        for word in re.split(r"[,;]", label):
            synonyms.setdefault(_plain(word), set()).add(row)
    rows: dict[str, int] = {}
    for name in wanted:
        word = given.get(name, name)
        if isinstance(word, int):
            if not 0 <= word < labels:
                raise UserError(f"base.names: {name!r} is row {word}, but the network has the rows 0 to {labels - 1}")
            rows[name] = word
            continue
        found = sorted(labelled.get(_plain(word)) or synonyms.get(_plain(word), ()))
        if len(found) > 1:
            raise UserError(f"the network has several rows {word!r}: {found}; choose one: base.names={{{name}: {found[0]}}}")
        if not found and name in given:
            raise UserError(f"base.names: the network has no label {word!r} for {name!r}; {_has(names, labels, word)}")
        if found:
            rows[name] = found[0]
    for name, row in rows.items():
        if (other := next(n for n, r in rows.items() if r == row)) != name:
            raise UserError(f"row {row} of the network would be both {other!r} and {name!r}; say in base.names which is meant")
    return rows


def base_rows(names: Sequence[str] | None, labels: int, base: Sequence[str], given: Mapping[str, str | int]) -> list[int]:
    """Return the row of every base class, in their order.

    Raises:
        UserError: as `match_rows`, a base class that the network does not know, or no row that is left for the background.
    """
    rows = match_rows(names, labels, base, given)
    for name in base:
        if name not in rows:
            raise UserError(
                f"the network does not know the base class {name!r}; {_has(names, labels, name)}. Say what it is called there, or "
                f"its row: base.names={{{name}: ...}}; or take another network, or base.checkpoint=train"
            )
    if len(rows) == labels:
        raise UserError(
            f"all {labels} labels of the network are base classes, so none is left for the background; take another network"
        )
    return [rows[name] for name in base]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _has(names: Sequence[str] | None, labels: int, word: str) -> str:
    if names is None:
        return f"its {labels} rows have no names"
    near = difflib.get_close_matches(word, names, 3)
    listed = ", ".join(names[:40]) + (f" and {len(names) - 40} others" if len(names) > 40 else "")
    return f"it has {listed}" + (f" (near: {', '.join(near)})" if near else "")


def merged_rows(weight: Tensor, bias: Tensor, base: Sequence[int], features: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """Return classifier rows (1 + B, D) and biases (1 + B,): the background, then the base classes as they are.

    The background is every other label of the network, the novel classes among them, as in base training. One other label
    keeps its row. Of several, the probability of the background is the sum of theirs, whose logit is no linear function:
    its row is the one whose softmax with the base rows comes nearest to the network's own probabilities (cross-entropy,
    convex) on the given features.

    Args:
        weight: (labels, D), float32.
        bias: (labels,).
        base: rows of the base classes; at least one row is left.
        features: (n, D) cells of base training images, in random order; the last quarter is held out.

    Returns:
        Also the share of held-out cells whose class stays the same; None where nothing was fitted.
    """
    chosen = list(base)
    others = [row for row in range(len(weight)) if row not in set(chosen)]
    if len(others) == 1:
        rows = [*others, *chosen]
        return weight[rows].clone(), bias[rows].clone(), None
    x, w, b = (t.double().numpy() for t in (features, weight, bias))
    held = len(x) - len(x) // 4
    logits = x @ w.T + b
    rest, own = np.logaddexp.reduce(logits[:, others], 1), logits[:, chosen]
    row, offset = _fit(x[:held], rest[:held], own[:held], w[others].mean(0), b[others].mean() + np.log(len(others)))
    fitted = x[held:] @ row + offset
    before, after = (np.concatenate([a[:, None], own[held:]], 1).argmax(1) for a in (rest[held:], fitted))
    first, start = (torch.from_numpy(np.asarray(v, np.float32)) for v in (row[None], [offset]))
    agreed = float((before == after).mean()) if len(x) > held else None
    return torch.cat([first, weight[chosen]]), torch.cat([start, bias[chosen]]), agreed


def _fit(x: np.ndarray, rest: np.ndarray, own: np.ndarray, start: np.ndarray, offset: float) -> tuple[np.ndarray, float]:
    """Return row (D,) and bias of the logit that, beside the logits `own` (n, B), comes nearest to `rest` (n,)."""
    from scipy.optimize import minimize

    mean, spread = x.mean(0), x.std(0) + 1e-6
    z, rivals = (x - mean) / spread, np.logaddexp.reduce(own, 1)
    target = 1 / (1 + np.exp(np.clip(rivals - rest, -500, 500)))
    first = np.append(start * spread, offset + start @ mean)

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        margin = z @ v[:-1] + v[-1] - rivals
        away = (np.logaddexp(0, margin) - target * margin).mean() + PULL * np.square(v - first).sum()
        error = 1 / (1 + np.exp(np.clip(-margin, -500, 500))) - target
        return float(away), np.append(error @ z, error.sum()) / len(z) + 2 * PULL * (v - first)

    found = minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    row = found[:-1] / spread
    return row, float(found[-1] - row @ mean)
