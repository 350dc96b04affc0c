"""Similarity by another network: its prototypes, what APF and APR get of it, and what stays the segmenter's."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.labeling.filtering import filter_regions
from syn4seg.labeling.relabeling import relabel
from syn4seg.stages.base_data import base_samples
from syn4seg.stages.checks import check_models
from syn4seg.stages.controls import SWAPPED, ControlLabels
from syn4seg.stages.labels import Enhancer, dense_features
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.setup import canvas_of, digest_inputs, load_dataset, shipped_base, support_of
from syn4seg.stages.similarity import FeatureView, feature_network, measured_prototypes
from syn4seg.stages.support import Registration, feature_extractor, support_samples
from syn4seg.store.rundir import RunDir
from tests.shared_features import tiny_dinov2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_dinov2(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def stage(prepared, small, tiny, tmp_path_factory):
    """The prepared run, registered anew with the features of a tiny DINOv2."""
    run, _ = prepared
    root = tmp_path_factory.mktemp("similarity") / "run"
    shutil.copytree(run.root, root)
    shutil.rmtree(root / "draws")
    config = load(None, [*small, f"labeling.features={tiny}", "labeling.feature_size=40", "labeling.base_prototype_images=12"])
    made = NovelStage(config, RunDir(root), *load_dataset(config))
    made.register(0)
    return made


class CutDataset:
    """A data set whose images, and their masks, are cut to other shapes."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def _cut(self, array, sample_id):
        return np.ascontiguousarray(array[:, : 64 - 7 * (len(sample_id) + ord(sample_id[-1])) % 29])

    def image(self, sample_id):
        return self._cut(self.dataset.image(sample_id), sample_id)

    def mask(self, sample_id):
        return self._cut(self.dataset.mask(sample_id), sample_id)


def _pooled_slowly(features, mask):
    """Each pixel of a mask bool (R, C) gives every cell of the map the part of the pixel that lies in it."""
    (depth, h, w), (rows, columns) = features.shape, mask.shape
    total = np.zeros(depth)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for i in range(h):
            high = min((i + 1) / h, (y + 1) / rows) - max(i / h, y / rows)
            for j in range(w) if high > 1e-12 else ():
                wide = min((j + 1) / w, (x + 1) / columns) - max(j / w, x / columns)
                total += max(wide, 0) * rows * columns * high * features[:, i, j].astype(np.float64)
    return total


@pytest.mark.parametrize("how", ["labelled", "none"])
def test_prototypes_are_means_over_the_pixels_of_images_of_any_shape(stage, small, how):
    tiny = stage.config.labeling.features
    words = f"novel.base_data={how}", "labeling.base_prototype_images=2", f"labeling.features={tiny}"
    config = load(None, [*small, *words])
    dataset, fold, canvas = CutDataset(stage.dataset), stage.fold, canvas_of(config)
    network, features = feature_network(config, "cpu"), feature_extractor(config, stage.segmenter, dataset)
    support = {k: ids[:1] for k, ids in support_of(config, stage.dataset, fold, 0).items()}
    samples = support_samples(config, dataset, fold, support, features)
    images = base_samples(config, stage.segmenter, dataset, fold, features).prototype_images
    assert network is not None and len(images) == (2 if how == "labelled" else 0)
    seen = [dataset.image(i) for ids in support.values() for i in ids], [dataset.image(s.sample_id) for s in images]
    views = [[FeatureView.of(network, image) for image in part] for part in seen]
    assert len({view.features.shape for view in (*views[0], *views[1])}) > 1
    found = measured_prototypes(config, stage.segmenter, fold, samples, views[0], images, views[1])

    wanted = np.zeros(found.shape)
    for sample, image in zip([*samples, *images], [*seen[0], *seen[1]], strict=True):
        rows, columns = canvas.shape(image.shape)
        label, maps = sample.label[:rows, :columns], network(image)
        assert (sample.label[rows:] == 255).all() and (sample.label[:, columns:] == 255).all()
        with torch.no_grad():
            base = stage.segmenter.classifier.pixels(sample.features.float()[None], 64)[0].argmax(0).numpy()[:rows, :columns]
        for k in range(len(wanted)):
            if k == 0 and sample.kind == "support":
                wanted[0] += _pooled_slowly(maps, (label == 0) & (base == 0))
            elif (k in fold.novel_indices) == (sample.kind == "support") and k:
                wanted[k] += _pooled_slowly(maps, label == k)
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(found, np.divide(wanted, lengths, out=np.zeros_like(wanted), where=lengths > 0), atol=1e-4)
    assert (lengths[13:] > 0).all() and (how == "labelled") == bool(lengths[1:13].any())


def test_drafts_and_classifiers_are_those_of_a_run_without_it(stage, prepared, small):
    before, after = Registration.load(prepared[0].draw(0)), Registration.load(stage.run.draw(0))
    assert set(load_file(prepared[0].draw(0).support)) == {"weight", "bias", "prototypes"}, "no byte more where nobody asks"
    assert after.measured is not None and after.measured.shape == (17, 16) and before.measured is None
    novel = slice(13, None)
    assert np.array_equal(before.prototypes[novel], after.prototypes[novel]) and np.array_equal(before.weight, after.weight)
    image = np.ascontiguousarray(stage.dataset.image(stage.dataset.val[0])[:, :41])
    plain = Enhancer.from_run(prepared[0], 0, load(None, small), "cpu")(image, 14)
    other = Enhancer.from_run(stage.run, 0, stage.config, "cpu")(image, 14)
    assert np.array_equal(plain.draft, other.draft)


@pytest.mark.parametrize("shape", [(64, 64), (64, 41), (30, 64), (150, 90)])
def test_filtering_and_relabeling_see_the_image_s_part_of_the_draft_by_the_other_map(stage, shape):
    enhancer = Enhancer.from_run(stage.run, 0, stage.config, "cpu")
    enhancer = replace(enhancer, thresholds=dict.fromkeys(enhancer.thresholds, 0.5))
    image = np.ascontiguousarray(np.resize(stage.dataset.image(stage.dataset.val[1]), (*shape, 3)))
    settings, target = stage.config.labeling, 13
    draft = enhancer.draft(dense_features(enhancer.segmenter, enhancer.canvas, image), shape, target)
    rows, columns = enhancer.canvas.shape(shape)
    network = feature_network(stage.config, "cpu")
    assert network is not None and enhancer.measured is not None
    features, margin = network(image), settings.tau * np.log(settings.target_odds)
    shared = {"rivals": [14, 15, 16], "rival_margin": margin}
    kept = filter_regions(
        draft.label[:rows, :columns].copy(),
        features,
        {k: enhancer.measured[k] for k in (13, 14, 15, 16)},
        target=target,
        novel=(13, 14, 15, 16),
        lambda_keep=0.5,
        min_region=round(settings.min_region * rows * columns / (shape[0] * shape[1])),
        confidence=draft.confidence[:rows, :columns].copy(),
        tau_base=settings.tau_base,
        tau_background=settings.tau_background,
        **shared,
    ).kept
    limits = {"lambda_keep": 0.5, "min_target": settings.min_target, "max_target": settings.max_target}
    numbers = {"beta": settings.beta, "tau": settings.tau, "theta": settings.theta}
    wanted = relabel(kept, features, target=target, prototypes=dict(enumerate(enhancer.measured)), **numbers, **limits, **shared)
    found = enhancer(image, target)
    assert np.array_equal(found.kept, enhancer.to_image_shape(kept, shape)) and found.reason == wanted.reason
    assert np.array_equal(found.relabeled, enhancer.to_image_shape(wanted.label, shape)) and found.relabeled.shape == shape


def test_control_b_has_the_next_class_s_prototype_in_the_other_features_too(stage):
    controls = ControlLabels(stage.config, stage.run, stage.fold, 0, {SWAPPED})
    enhancer = Enhancer.from_run(stage.run, 0, stage.config, "cpu")
    assert enhancer.measured is not None
    order = [*range(13), 14, 15, 16, 13]
    swapped = replace(enhancer, prototypes=enhancer.prototypes[order], measured=enhancer.measured[order])
    image = stage.dataset.image(stage.dataset.val[0])
    assert np.array_equal(controls._swapped(image, stage.features_of("x", image), 14), swapped(image, 14).relabeled)


def test_features_that_are_not_finite_are_the_image_s_own_fault(stage):
    enhancer = Enhancer.from_run(stage.run, 0, stage.config, "cpu")
    assert enhancer.network is not None
    next(enhancer.network.backbone.module.parameters()).data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"the features of this image by labeling\.features="):
        enhancer(stage.dataset.image(stage.dataset.val[0]), 13)


def test_the_segmenter_s_own_backbone_as_features_tells_classes_apart(stage, small, tmp_path):
    """Regions of validation images by their true masks: the nearest novel prototype is mostly that of their class."""
    from safetensors.torch import save_file

    from syn4seg.segmenter.network import load_segmenter

    save_file(load_segmenter(shipped_base(0))[0].backbone.state_dict(), tmp_path / "backbone.safetensors")
    words = ["labeling.features=embedded", f"labeling.feature_weights={tmp_path / 'backbone.safetensors'}"]
    config, fold = load(None, [*small, *words]), stage.fold
    check_models(config, None)
    run = RunDir(tmp_path / "run")
    shutil.copytree(stage.run.root, run.root)
    shutil.rmtree(run.root / "draws")
    registration = NovelStage(config, run, stage.dataset, fold).register(0)
    network, right = feature_network(config, "cpu"), []
    assert registration.measured is not None and network is not None
    for sample in stage.dataset.train[:60]:
        label, features = fold.to_index[stage.dataset.mask(sample)], network(stage.dataset.image(sample))
        for k in set(fold.novel_indices) & set(np.unique(label)):
            mean = _pooled_slowly(features, label == k)
            right.append(k == 13 + int(np.argmax(registration.measured[13:] @ (mean / np.linalg.norm(mean)))))
    assert len(right) > 15 and np.mean(right) > 0.6, (len(right), np.mean(right))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["labeling.feature_size=32"], r"labeling.feature_size=32: labeling.features=segmenter compares by the segmenter's own"),
        (["labeling.feature_weights=x"], "labeling.feature_weights=x: .* name another network"),
        (["labeling.features=nothing"], "labeling.features=nothing, labeling.feature_weights=None: backbone 'nothing' is unknown"),
        (["labeling.features=resnet50"], "labeling.features=resnet50, .* set labeling.feature_weights to a file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_loads(small, words, said):
    with pytest.raises(UserError, match=said):
        check_models(load(None, [*small, *words]), None)


def test_a_registration_with_other_features_is_not_labelled_with(stage, small, prepared):
    for run, config in ((stage.run, load(None, small)), (prepared[0], stage.config)):
        with pytest.raises(UserError, match=r"registered with other features than labeling\.features="):
            Enhancer.from_run(run, 0, config, "cpu")


def test_a_folder_is_an_input_of_the_run_and_a_short_name_never_a_folder(small, tiny, tmp_path, monkeypatch):
    (tmp_path / "clip").mkdir()
    monkeypatch.chdir(tmp_path)
    short = load(None, [*small, "labeling.features=clip"])
    assert short.labeling.feature_backbone == "openai/clip-vit-base-patch16" and "labeling.features" not in digest_inputs(short)
    assert "labeling.features" in digest_inputs(load(None, [*small, f"labeling.features={tiny}"]))
