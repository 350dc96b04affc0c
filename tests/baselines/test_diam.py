"""DIaM: every term against its equation pixel by pixel, its gradients by finite differences, each query on its own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from syn4seg.baselines import build
from syn4seg.baselines.diam import Diam, Objective, cross_entropy, distillation, entropy, marginal, proportions
from syn4seg.baselines.support import SupportCells
from syn4seg.data.canvas import Canvas
from syn4seg.segmenter.evaluation import Query
from syn4seg.segmenter.network import Classifier, upsample
from syn4seg.segmenter.novel import TrainingSample

DIM, GRID, SIDE, BASE, NOVEL = 6, 6, 24, 2, 2
ROWS = 1 + BASE + NOVEL


def _features(seed):
    return torch.randn(DIM, GRID, GRID, generator=torch.Generator().manual_seed(seed)).relu().half()


def _label(k):
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[4:16, 8:20], label[:, 20:] = k, 255
    return label


def _base(cosine=False, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    rows, bias = torch.randn(1 + BASE, DIM, generator=g), torch.randn(1 + BASE, generator=g)
    return Classifier(rows.to(dtype), bias.to(dtype), cosine, True)


def _support(shots=1):
    return [TrainingSample(f"{k}-{s}", _features(10 * k + s), _label(k), "support") for k in (3, 4) for s in range(shots)]


def _diam(base=None, shots=1, **changes):
    base = base or _base()
    cells = SupportCells.of(_support(shots), base.weight, BASE, NOVEL)
    return dataclasses.replace(Diam.of(base, cells, shots), objective=Objective(**changes))


def _query(seed, edge=0):
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[SIDE - edge :] = 255
    return Query(f"q{seed}", _features(seed), label, Canvas(SIDE))


def _probabilities(seed, rows=ROWS, pixels=40):
    return torch.randn(rows, pixels, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(0)


def test_the_terms_equal_loops_over_pixels():
    p, snapshot, target = _probabilities(1), _probabilities(2, 1 + BASE), torch.tensor([0, 3, 4, 0] * 10)
    ce = kd = disorder = 0.0
    mean = [0.0] * ROWS
    for i in range(40):
        here = [float(v) for v in p[:, i]]
        ce -= 0.15 * math.log(here[0] + here[1] + here[2]) if target[i] == 0 else math.log(here[target[i]])
        merged = [here[0] + here[3] + here[4], here[1], here[2]]
        kd += sum(a * math.log(a / float(b)) for a, b in zip(merged, snapshot[:, i], strict=True))
        disorder -= sum(a * math.log(a) for a in here)
        mean = [m + a / 40 for m, a in zip(mean, here, strict=True)]
    pi = _probabilities(3, ROWS, 1)[:, 0]
    kl = sum(m * math.log(m / float(q)) for m, q in zip(mean, pi, strict=True))
    assert float(cross_entropy(p, target, 1 + BASE, 0.15)) == pytest.approx(ce / 40, rel=1e-5)
    assert float(distillation(p, snapshot)) == pytest.approx(kd / 40, rel=1e-5)
    assert float(entropy(p)) == pytest.approx(disorder / 40, rel=1e-5)
    assert proportions(p).tolist() == pytest.approx(mean, rel=1e-5)
    assert float(marginal(p, pi)) == pytest.approx(kl, rel=1e-4)


def _slow_loss(diam, weight, bias, query, pi):
    """The objective at float64 rows, in plain numpy on images rather than on lists of cells."""

    def odds(w, b, f):
        z = np.einsum("cd,d...->c...", w, f) + b.reshape(-1, *[1] * (f.ndim - 1))
        z = np.exp(z - z.max(0))
        return z / z.sum(0)

    ce = count = 0.0
    for s in sorted(_support(), key=lambda s: s.sample_id):
        p = odds(weight, bias, s.features.double().numpy())
        for y, x in np.ndindex(GRID, GRID):
            k = s.label[y * SIDE // GRID, x * SIDE // GRID]
            if k != 255:
                ce -= diam.background_weight * np.log(p[: 1 + BASE, y, x].sum()) if k == 0 else np.log(p[k, y, x])
                count += 1
    use = query.label[:: SIDE // GRID, :: SIDE // GRID] != 255
    f = query.features.double().numpy()[:, use]
    p, before = odds(weight, bias, f), odds(diam.base.weight.numpy(), diam.base.bias.numpy(), f)
    merged = np.concatenate([p[:1] + p[1 + BASE :].sum(0), p[1 : 1 + BASE]])
    kd, share = (merged * np.log(merged / before)).sum(0).mean(), p.mean(1)
    return 100 * ce / count + (share * np.log(share / pi)).sum() - (p * np.log(p)).sum(0).mean() + 100 * kd


def test_a_step_follows_the_gradient_by_finite_differences_and_pi_is_the_imprinted_models():
    diam, query = _diam(_base(dtype=torch.float64), steps=1), _query(40, edge=8)
    cells = query.features.double()[:, torch.arange(GRID) < 4].flatten(1)
    found = diam.adapted(cells)
    start = [t.numpy().copy() for t in (diam.start.weight, diam.start.bias)]
    pi = proportions(diam.start(cells[None, :, :, None])[0, :, :, 0].softmax(0)).numpy()
    for which, got in enumerate((found.weight, found.bias)):
        step = (got - (diam.start.weight, diam.start.bias)[which]).numpy() / -diam.objective.lr
        for place in np.ndindex(step.shape):
            slope = []
            for sign in (1, -1):
                weight, bias = (t.copy() for t in start)
                (weight, bias)[which][place] += sign * 1e-5
                slope.append(_slow_loss(diam, weight, bias, query, pi))
            assert step[place] == pytest.approx((slope[0] - slope[1]) / 2e-5, abs=2e-4)


def test_without_steps_it_is_the_prediction_of_the_imprinted_classifier():
    diam, query = _diam(steps=0), _query(41)
    means = SupportCells.of(_support(), diam.base.weight, BASE, NOVEL).means()
    assert torch.allclose(diam.start.weight[1 + BASE :], means / means.norm(dim=1, keepdim=True))
    assert (diam.start.bias[1 + BASE :] == 0).all() and torch.equal(diam.start.weight[: 1 + BASE], diam.base.weight)
    p = diam.start(query.features.float()[None]).softmax(1)
    assert (diam(query) == upsample(p, (SIDE, SIDE), True)[0].argmax(0).numpy()).all()


def test_a_querys_result_does_not_depend_on_other_queries_or_their_order():
    diam, ids = _diam(steps=20), (50, 51, 52)
    together = {i: diam(_query(i)) for i in ids}
    again = {i: diam(_query(i)) for i in ids[::-1]}
    assert all((together[i] == again[i]).all() and (together[i] == _diam(steps=20)(_query(i))).all() for i in ids)


@pytest.mark.parametrize("cosine", [False, True])
def test_the_objective_falls_and_the_shared_classifiers_are_left_alone(cosine):
    diam, cells = _diam(_base(cosine)), _features(60).float().flatten(1)
    before = diam.start.weight.clone(), diam.base.weight.clone()
    snapshot = diam.base(cells[None, :, :, None])[0, :, :, 0].softmax(0)
    pi = proportions(diam.start(cells[None, :, :, None])[0, :, :, 0].softmax(0))
    after = diam.adapted(cells)
    assert diam.loss(after, cells, snapshot, pi) < diam.loss(diam.start, cells, snapshot, pi) - 1
    assert torch.equal(diam.start.weight, before[0]) and torch.equal(diam.base.weight, before[1])
    assert not torch.equal(after.weight[:3], before[0][:3]) and not torch.equal(after.weight[3:], before[0][3:])


def test_the_marginal_term_pulls_the_proportions_towards_pi():
    z = torch.randn(ROWS, 30, generator=torch.Generator().manual_seed(4)).requires_grad_()
    pi = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.6])
    gaps = []
    for _ in range(200):
        p = z.softmax(0)
        gaps.append((proportions(p) - pi).abs().sum().item())
        (slope,) = torch.autograd.grad(marginal(p, pi), z)
        z = (z - 10 * slope).detach().requires_grad_()
    assert gaps[-1] < 0.05 * gaps[0] and marginal(z.softmax(0), pi).item() < 1e-3


def test_pi_is_estimated_again_after_the_named_step_and_not_before():
    cells = _features(61).float().flatten(1)
    for steps, same in ((2, True), (3, False)):  # the third step is the first that sees the pi of step 2
        a, b = (_diam(steps=steps, marginal=1000.0, estimate_at=at).adapted(cells).weight for at in ((), (2,)))
        assert torch.equal(a, b) == same


def test_the_background_weight_follows_the_shots():
    assert [_diam(shots=s).background_weight for s in (1, 2, 5)] == [0.01, 0.15, 0.15]


def test_padding_of_the_query_is_not_learned_from_but_is_predicted():
    diam, label = _diam(steps=30), np.zeros((16, SIDE), np.uint8)
    query = dataclasses.replace(_query(42), label=label, shape=label.shape)  # fills the upper 4 rows of cells
    changed = query.features.clone()
    changed[:, 5:] = 9
    found = diam(query)
    assert found.shape == label.shape
    assert (found[:12] == diam(dataclasses.replace(query, features=changed))[:12]).all()
    nothing = dataclasses.replace(_query(42), label=np.full((SIDE, SIDE), 255, np.uint8))
    assert diam(nothing).shape == (SIDE, SIDE)


def test_base_labels_kept_in_the_support_count_as_background():
    kept = _support()
    for s in kept:
        s.label[18:, :8] = 1
    base = _base()
    a, b = (
        build("diam", base=base, support=s, base_classes=BASE, novel_classes=NOVEL, shots=1, seed=0) for s in (_support(), kept)
    )
    assert (a(_query(43)) == b(_query(43))).all()
