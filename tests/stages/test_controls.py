"""The control rows: what labels they train on, and that they could refute the method."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from syn4seg.config.loading import load
from syn4seg.data import embedded
from syn4seg.stages.checks import check
from syn4seg.stages.controls import ControlLabels, image_label
from syn4seg.stages.labels import Enhancer
from syn4seg.stages.novel import NovelStage
from syn4seg.stages.rows import IMAGE_LABEL, SWAPPED, TRUTH, WITHOUT_VERDICT, rows_of
from syn4seg.store.samples import StoredSample


def test_the_image_label_turns_every_novel_pixel_into_the_target_and_no_other():
    draft = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = image_label(draft, 15, range(13, 17))
    assert found.dtype == np.uint8 and set(found[(draft >= 13) & (draft < 17)]) == {15}
    assert np.array_equal(found[(draft < 13) | (draft >= 17)], draft[(draft < 13) | (draft >= 17)])


@pytest.fixture
def stage(fresh, small):
    run, _ = fresh
    config = load(None, [*small, "evaluation.controls=true"])
    return NovelStage(config, run, *check(config))


def test_controls_are_computed_from_draft_prototypes_and_renderer(stage):
    controls = ControlLabels(stage.config, stage.run, stage.fold, 0)
    assert controls.columns == {IMAGE_LABEL, SWAPPED, TRUTH}
    target = stage.fold.novel_indices[1]
    asked = {"prompt": f"a big red {stage.fold.index_names[target]} on sand", "noise_seed": 7}
    image = embedded.draw(embedded.scene_of_prompt(asked["prompt"], asked["noise_seed"]), 64)[0]
    made = Enhancer.from_run(stage.run, 0, stage.config, "cpu")(image, target)
    accepted = StoredSample(asked | {"class_id": target, "reason": ""}, {"draft": made.draft, "kept": made.kept})
    labels = controls.of(accepted, image, stage.features_of("x", image))
    assert set(labels) == controls.columns and all(x.shape == image.shape[:2] for x in labels.values())
    assert np.array_equal(labels[IMAGE_LABEL], image_label(accepted.labels["draft"], target, stage.fold.novel_indices))
    assert (labels[TRUTH] == target).any() and set(np.unique(labels[TRUTH])) <= {0, *range(1, 17)}
    rejected = StoredSample(accepted.record | {"reason": "target_too_small"}, accepted.labels)
    assert set(controls.of(rejected, image, stage.features_of("x", image))) == {IMAGE_LABEL, TRUTH} <= set(WITHOUT_VERDICT)


def test_the_swapped_control_uses_the_prototype_of_the_next_class_and_the_target_otherwise(stage):
    controls = ControlLabels(stage.config, stage.run, stage.fold, 0)
    enhancer = Enhancer.from_run(stage.run, 0, stage.config, "cpu")
    image = stage.dataset.image(stage.dataset.val[0])
    features, novel = stage.features_of("y", image), stage.fold.novel_indices
    prototypes = enhancer.prototypes.copy()
    for index, following in zip(novel, [*novel[1:], novel[0]], strict=True):
        prototypes[index] = enhancer.prototypes[following]
    for target in (novel[0], novel[-1]):
        wrong = Enhancer(**{**vars(enhancer), "prototypes": prototypes})
        draft = wrong.draft(features.float(), image.shape, target)
        expected = wrong.relabel(wrong.filter(draft, target).kept, draft.features, target).label
        assert np.array_equal(controls._swapped(image, features, target), wrong.to_image_shape(expected, image.shape))


def test_in_this_world_neither_the_images_class_nor_other_prototypes_make_labels_as_good_as_the_methods(stage):
    """Images that show company, labelled by the method and by both controls: the IoU of the target over all of them."""
    controls, enhancer = ControlLabels(stage.config, stage.run, stage.fold, 0), Enhancer.from_run(stage.run, 0, stage.config, "cpu")
    table, found = stage.fold.to_index, {name: np.zeros(2) for name in ("method", IMAGE_LABEL, SWAPPED)}
    for number in range(40):
        target = stage.fold.novel_indices[number % 4]
        name = stage.fold.index_names[target]
        prompt = f"a {name} beside a {embedded.COMPANIONS[name]}"
        image, mask = embedded.draw(embedded.scene_of_prompt(prompt, number), 64)
        made, truth = enhancer(image, target), table[mask] == target
        asked = {"prompt": prompt, "noise_seed": number, "class_id": target, "reason": ""}
        labels = controls.of(StoredSample(asked, {"draft": made.draft}), image, stage.features_of(f"z{number}", image))
        for key, label in {"method": made.relabeled, IMAGE_LABEL: labels[IMAGE_LABEL], SWAPPED: labels[SWAPPED]}.items():
            found[key] += np.count_nonzero(truth & (label == target)), np.count_nonzero(truth | (label == target))
    iou = {key: both / either for key, (both, either) in found.items()}
    assert iou["method"] > 0.4 and iou[IMAGE_LABEL] < iou["method"] - 0.1 and iou[SWAPPED] < iou["method"] - 0.3, iou


def test_controls_are_rows_only_where_they_are_asked_for_and_an_oracle_only_where_the_truth_is_known(small, tmp_path):
    names = {"control_image_label", "control_swapped", "oracle"}
    assert not names & set(rows_of(load(None, small)))
    assert names <= set(rows_of(load(None, [*small, "evaluation.controls=true"])))
    imported = [*small, "evaluation.controls=true", "synthesis.source=folder", f"synthesis.root={tmp_path}"]
    assert names & set(rows_of(load(None, imported))) == names - {"oracle"}
    assert "oracle" in rows_of(load(None, [*imported, f"evaluation.masks={tmp_path}"]))


@pytest.mark.slow
def test_a_run_with_controls_scores_them_beside_the_rows_and_leaves_these_as_they_were(small, tmp_path):
    found = []
    for extra in ([], ["evaluation.controls=true"]):
        out = tmp_path / str(len(extra))
        command = [sys.executable, "-m", "syn4seg.cli", "run", *small, "placement.runner=inline", *extra, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((out / "results.json").read_text()))
    plain, controlled = found
    assert {row: controlled["rows"][row] for row in plain["rows"]} == plain["rows"]
    assert set(controlled["rows"]) - set(plain["rows"]) == {"control_image_label", "control_swapped", "oracle"}
    assert controlled["gains"]["syn4seg"]["share_of_oracle"].keys() == {"novel", "harmonic"}
