"""The library: the same bits as the arithmetic inside, NumPy or torch, mistakes in one sentence, an import that costs nothing."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import syn4seg
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.labeling import filtering, refinement, relabeling
from syn4seg.labeling.components import components
from syn4seg.labeling.prototypes import normalised
from syn4seg.library.arrays import mask_stack
from syn4seg.prompts.bank import NEAR, build_bank, unit_rows
from syn4seg.report.picture import Picture
from syn4seg.report.reading import Shown
from syn4seg.report.sheets import colors_of
from syn4seg.seeds import seeded
from syn4seg.segmenter.evaluation import confusion, metrics
from syn4seg.stages.setup import load_dataset
from syn4seg.store.files import read_image
from syn4seg.store.rundir import RunDir

REPOSITORY = Path(__file__).parents[2]


def case(seed: object):
    """A draft of three classes with unlabeled pixels, features on a grid, unit prototypes, and the segmenter's confidence."""
    rng = seeded("library", seed)
    label = np.kron(rng.choice(np.array([0, 0, 1, 4, 5, 255], np.uint8), (6, 7)), np.ones((4, 4), np.uint8))
    features = rng.normal(size=(8, 12, 14)).astype(np.float32)
    prototypes = {k: normalised(rng.normal(size=8)) for k in (0, 1, 4, 5)}
    return label, features, prototypes, rng.random(label.shape)


def tensors(value: np.ndarray) -> torch.Tensor:
    """The same in torch."""
    return torch.from_numpy(value)


# ---------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize("of", [np.asarray, tensors])
@pytest.mark.parametrize("seed", range(5))
def test_filtering_and_relabeling_are_the_arithmetic_inside_bit_by_bit_also_for_tensors(seed, of):
    label, features, prototypes, confidence = case(seed)
    vectors = {k: of(v) for k, v in prototypes.items()}
    how = {"target": 5, "novel": (4, 5), "lambda_keep": 0.0, "min_region": 4, "tau_base": 0.3, "tau_background": 0.1}
    inside = filtering.filter_regions(label, features, prototypes, confidence=confidence, **how)
    found = syn4seg.filter_regions(of(label), of(features), vectors, confidence=of(confidence), **how)
    assert type(found.kept) is type(of(label)) and repr(found.regions) == repr(inside.regions)
    np.testing.assert_array_equal(found.kept, inside.kept)
    assert len(np.unique(inside.kept)) > 2 and np.any(inside.kept != label)

    given = {"target": 5, "beta": 0.3, "tau": 0.2, "theta": 0.3, "lambda_keep": -1.0, "min_target": 0.0, "max_target": 0.1}
    then = relabeling.relabel(inside.kept, features, prototypes=prototypes, **given)
    done = syn4seg.relabel(found.kept, of(features), prototypes=vectors, **given)
    assert then.changed and (done.changed, done.reason, done.similarity_best) == (then.changed, then.reason, then.similarity_best)
    np.testing.assert_array_equal(done.label, then.label)
    assert list(done.local) == list(then.local)
    assert all(np.array_equal(done.local[k], then.local[k]) for k in then.local)
    assert all(type(x) is type(of(label)) for x in (done.label, *done.local.values()))


def test_defaults_are_those_of_the_configuration():
    from inspect import signature

    config = Config()
    defaults = {}
    for function in (syn4seg.filter_regions, syn4seg.relabel):
        defaults |= {k: p.default for k, p in signature(function).parameters.items() if hasattr(config.labeling, k)}
    assert len(defaults) == 9 and defaults == {k: getattr(config.labeling, k) for k in defaults}
    given = {k: p.default for k, p in signature(syn4seg.refine_boundary).parameters.items()}
    assert {k: given[k] for k in ("band_width", "margin", "min_agreement")} == {
        k: getattr(config.refinement, k) for k in ("band_width", "margin", "min_agreement")
    }
    assert signature(syn4seg.PromptBank).parameters["lambda_prompt"].default == config.prompts.lambda_prompt


@pytest.mark.parametrize("seed", range(5))
def test_refinement_is_the_arithmetic_inside_whether_sam_is_called_or_its_masks_are_given(seed):
    label = case(seed)[0]
    found = components(label)
    rng = seeded("library", "masks", seed)
    masks = np.stack([np.roll(found.map == r + 1, tuple(rng.integers(-1, 2, 2)), (0, 1)) for r in range(len(found.area))])
    ious = rng.random(len(masks))
    inside = refinement.refine_boundary(label, found, masks, ious, band_width=2, min_agreement=0.3)
    hints = []

    def sam(boxes):
        hints.append(boxes)
        return (tensors(masks), tensors(ious)) if isinstance(boxes, torch.Tensor) else (masks, ious)

    for of in (np.asarray, tensors):
        for given in ((of(masks), of(ious)), (sam,)):
            got = syn4seg.refine_boundary(of(label), *given, band_width=2, min_agreement=0.3)
            assert type(got.label) is type(got.agreement) is type(of(label))
            assert got.changed == inside.changed
            for name in ("label", "accepted", "agreement"):
                np.testing.assert_array_equal(getattr(got, name), getattr(inside, name))
    assert all(np.array_equal(boxes, refinement.hint_boxes(found, 1, label.shape)) for boxes in hints) and len(hints) == 2


def test_a_label_without_a_component_never_reaches_sam():
    done = syn4seg.refine_boundary(np.zeros((4, 4), int), lambda boxes: 1 / 0)
    assert done.changed == 0 and done.accepted.shape == (0,)


def test_what_is_given_is_not_changed_and_other_dtypes_and_strides_give_the_same():
    label, features, prototypes, _ = case("kinds")
    before = label.copy(), features.copy()
    wanted = syn4seg.filter_regions(label, features, prototypes, target=5, min_region=2).kept
    assert wanted is not label and not np.shares_memory(wanted, label)
    for other in (label.astype(np.int64), np.asfortranarray(label), label[::-1, ::-1].copy()[::-1, ::-1], label.tolist()):
        got = syn4seg.filter_regions(other, features.astype(np.float64), prototypes, target=5, min_region=2).kept
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, wanted)
    half = torch.from_numpy(features).to(torch.bfloat16).requires_grad_()
    assert syn4seg.filter_regions(label, half, prototypes, target=5, min_region=2).kept.shape == label.shape
    np.testing.assert_array_equal(label, before[0])
    np.testing.assert_array_equal(features, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tensors_of_a_gpu_come_back_on_that_gpu():
    label, features, prototypes, _ = case("gpu")
    got = syn4seg.filter_regions(tensors(label).cuda(), tensors(features).cuda(), prototypes, target=5).kept
    assert got.device.type == "cuda"
    np.testing.assert_array_equal(got.cpu(), syn4seg.filter_regions(label, features, prototypes, target=5).kept)


LABEL, FEATURES, PROTOTYPES, _ = case("mistakes")
BAD = {
    "scores for a label": (lambda: filter_with(draft=LABEL.astype(float)), r"draft has dtype float64; .*argmax"),
    "a negative class": (lambda: filter_with(draft=LABEL.astype(int) - 1), r"draft holds -1; expected 0 \(background\)"),
    "a class above 255": (lambda: filter_with(draft=LABEL.astype(int) * 9), r"draft holds 2295; expected"),
    "a batch of labels": (lambda: filter_with(draft=LABEL[None]), r"draft has shape \(1, 24, 28\); expected \(H, W\): one image"),
    "texts": (lambda: filter_with(draft=[["a"]]), r"draft is a list of <U1; expected numbers"),
    "uneven lists": (lambda: filter_with(draft=[[1], [1, 2]]), r"draft is a list"),
    "an empty label": (lambda: filter_with(draft=LABEL[:0]), r"draft has shape \(0, 28\)"),
    "nan features": (lambda: filter_with(features=FEATURES * np.nan), r"features: 1344 of 1344 numbers are nan or infinite"),
    "features in half precision": (
        lambda: filter_with(features=torch.from_numpy(FEATURES * 1e6).half()),
        r"infinite; .*half precision",
    ),
    "features of a batch": (lambda: filter_with(features=FEATURES[None]), r"features has shape \(1, 8, 12, 14\).*one image"),
    "rows for prototypes": (lambda: filter_with(prototypes=np.eye(8)), r"prototypes is a ndarray; .*dict\(enumerate\(rows\)\)"),
    "a short prototype": (lambda: filter_with(prototypes={5: np.ones(3)}), r"prototypes\[5\] has shape \(3,\); expected \(8,\)"),
    "no prototype of the target": (lambda: filter_with(prototypes={1: np.ones(8)}), r"but not target 5"),
    "a small confidence": (lambda: filter_with(confidence=np.ones((2, 2))), r"confidence has shape \(2, 2\); expected \(24, 28\)"),
    "background as target": (lambda: filter_with(target=0), r"target is 0; expected a class index from 1 to 254"),
    "a fraction as target": (lambda: filter_with(target=1.5), r"target is 1.5; expected a class index"),
    "a cosine above 1": (lambda: filter_with(lambda_keep=1.2), r"lambda_keep is 1.2; expected a number from -1 to 1"),
    "a nan threshold": (lambda: filter_with(lambda_keep=float("nan")), r"lambda_keep is nan"),
    "a text for a number": (lambda: filter_with(min_region="many"), r"min_region is 'many'; expected a number from 0 on"),
    "raw prototypes": (lambda: relabel_with({0: np.ones(8), 5: np.ones(8)}), r"prototypes\[0\] has length 2.828; expected 1"),
    "temperature 0": (lambda: relabel_with(PROTOTYPES, tau=0), r"tau is 0; expected a number above 0"),
    "a missing prototype": (lambda: relabel_with({5: PROTOTYPES[5]}), r"prototypes lacks \[0"),
    "logits for masks": (lambda: mask_stack(np.ones((1, 2, 2)), "masks", 1, (2, 2)), r"masks has dtype float64.*> 0"),
    "too few masks": (lambda: syn4seg.refine_boundary(LABEL, np.ones((1, 24, 28), bool), [1]), r"one mask per component"),
    "masks without ious": (lambda: syn4seg.refine_boundary(np.eye(2, dtype=int), np.ones((1, 2, 2), bool)), r"ious is missing"),
    "a number of classes": (lambda: score(base=2, novel=[3]), r"base is 2; .*range\(1, 16\)"),
    "a class twice": (lambda: score(base=[1, 2], novel=[2]), r"base is \[1, 2\] and novel \[2\]; expected different"),
    "a class nobody knows": (lambda: score(base=[1, 4], novel=[9]), r"labels\[0\] holds 5, which is neither"),
    "a larger prediction": (
        lambda: syn4seg.evaluate([LABEL], [LABEL.T], base=[1, 4], novel=[5]),
        r"predictions\[0\] has shape \(28, 24\); expected",
    ),
    "one prediction less": (lambda: syn4seg.evaluate([LABEL] * 2, [LABEL], base=[1, 4], novel=[5]), r"predictions ended first"),
    "no image": (lambda: syn4seg.evaluate([], [], base=[1], novel=[2]), r"labels is empty"),
    "no pairs": (lambda: syn4seg.evaluate([LABEL], base=[1, 4], novel=[5]), r"labels\[0\] is a ndarray; .*pairs"),
    "no embeddings": (lambda: syn4seg.PromptBank().offer("a dog"), r"embeddings is missing and the bank has no encoder"),
    "a zero embedding": (lambda: syn4seg.PromptBank().offer(["a", "b"], [[1, 0], [0, 0]]), r"that of 'b' is zero"),
    "a row too many": (lambda: syn4seg.PromptBank().offer(["a"], np.eye(2)), r"embeddings has shape \(2, 2\); expected \(1, E\)"),
    "no texts": (lambda: syn4seg.PromptBank().offer(["a", 3], np.eye(2)), r"prompts holds 3; expected texts"),
    "no threshold": (lambda: syn4seg.PromptBank(-1), r"lambda_prompt is -1; expected a number above -1 to 1"),
    "no run": (lambda: syn4seg.show("nowhere", "x"), r"nowhere: not a run"),
    "another kind of file": (lambda: Picture(Shown({}, None, {})).save("x.jpg"), r"path is 'x.jpg'; .*\.png or \.html"),
}


def filter_with(**changed):
    given = {"draft": LABEL, "features": FEATURES, "prototypes": PROTOTYPES, "target": 5} | changed
    return syn4seg.filter_regions(given.pop("draft"), given.pop("features"), given.pop("prototypes"), **given)


def relabel_with(prototypes, **changed):
    return syn4seg.relabel(LABEL, FEATURES, target=5, prototypes=prototypes, **changed)


def score(**groups):
    return syn4seg.evaluate([LABEL], [LABEL], **groups)


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence_that_names_value_and_expectation(name):
    call, said = BAD[name]
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------- prompts
class Listed:
    """A prompt agent that proposes a list, once."""

    def __init__(self, texts):
        self.texts = texts

    def propose(self, class_name, round_number, accepted, refused):
        return self.texts if round_number == 0 else []


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_bank_decides_as_the_bank_of_a_run_in_any_batches(as_tensor, batch):
    rng = seeded("library", "bank")
    texts = [f"a dog number {i}" for i in range(60)] + ["", "A DOG number 3", "a cat", "dog " * 100]
    rows = dict(zip(texts, rng.normal(size=(len(texts), 6)) + 1, strict=True))
    inside = build_bank(
        Listed(texts), lambda t: unit_rows(np.stack([rows[x] for x in t])), "dog", size=1000, lambda_prompt=0.9, patience=1000
    )
    given = np.stack(list(rows.values()))
    told = []
    bank = syn4seg.PromptBank(0.9, class_name="dog")
    found = bank.offer(texts, torch.from_numpy(given) if as_tensor else given, batch=batch, progress=lambda *at: told.append(at))
    encoded = syn4seg.PromptBank(0.9, class_name="dog", encoder=lambda t: np.stack([rows[x] for x in t]))
    for text in texts:
        encoded.offer(text)
    for one in (bank, encoded):
        for mine, theirs in ((one.accepted, inside.accepted), (one.refused, inside.refused)):
            assert [(c.text, c.order, c.nearest, c.why) for c in mine] == [(c.text, c.order, c.nearest, c.why) for c in theirs]
            assert [c.similarity for c in mine] == pytest.approx([c.similarity for c in theirs], abs=1e-6)
        np.testing.assert_allclose(one.embeddings, inside.embeddings, atol=1e-7)
    assert found == sorted(bank.accepted + bank.refused, key=lambda c: c.order) and any(c.why == NEAR for c in found)
    assert bank.prompts == [c.text for c in found if not c.why]
    assert isinstance(bank.embeddings, torch.Tensor if as_tensor else np.ndarray)
    assert told[-1] == (len(texts), len(texts)) and len(told) == -(-len(texts) // batch)


def test_a_bank_whose_encoder_failed_is_as_it_was():
    answers = iter([RuntimeError("no connection"), np.eye(2)])

    def encoder(texts):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    bank = syn4seg.PromptBank(encoder=encoder)
    with pytest.raises(RuntimeError):
        bank.offer(["a dog", "a cat"])
    assert [c.why for c in bank.offer(["a dog", "a cat"])] == ["", ""]


@pytest.mark.parametrize("how", ["given", "encoded"])
def test_a_bank_keeps_nothing_of_the_callers_embeddings_but_their_kind(how):
    for given in (np.eye(3), torch.eye(3)):
        bank = syn4seg.PromptBank(encoder=lambda _, given=given: given)
        bank.offer(["a", "b", "c"], given if how == "given" else None)
        kept = bank._kind
        held = kept.untyped_storage().nbytes() if isinstance(kept, torch.Tensor) else kept.nbytes
        assert held == 0 and getattr(kept, "base", None) is None
        assert type(bank.embeddings) is type(given) and bank.embeddings.shape == (3, 3)


# --------------------------------------------------------------------------------------------------- scoring
def test_scores_are_those_of_one_confusion_matrix_whatever_the_numbers_of_the_classes_and_however_the_images_come():
    rng = seeded("library", "scores")
    shapes = [(9, 7), (5, 11), (8, 8)]
    inner = [rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), s, p=[0.4, 0.2, 0.2, 0.1, 0.1]) for s in shapes]
    guesses = [np.where(rng.random(s) < 0.7, x % 255, 0).astype(np.uint8) for s, x in zip(shapes, inner, strict=True)]
    matrix = sum(confusion(g, x, 4) for g, x in zip(guesses, inner, strict=True))
    wanted = metrics(np.asarray(matrix), 2, 1)
    numbers = np.arange(256, dtype=np.uint8)
    numbers[[1, 2, 3]] = 40, 7, 20
    labels, predictions = [numbers[x] for x in inner], [numbers[g] for g in guesses]
    told = []
    given = [
        ((labels, predictions), len(labels)),
        ((iter(labels), (p.astype(np.int64) for p in predictions)), None),
        ((zip(labels, predictions, strict=True),), None),
        (([torch.from_numpy(x) for x in labels], [torch.from_numpy(p) for p in predictions]), len(labels)),
    ]
    for arguments, total in given:
        scores = syn4seg.evaluate(*arguments, base=[40, 7], novel=[20], progress=lambda *at: told.append(at))
        np.testing.assert_array_equal(scores.confusion, matrix)
        assert {k: getattr(scores, k) for k in wanted if k != "per_class"} == {k: v for k, v in wanted.items() if k != "per_class"}
        assert list(scores.per_class) == [0, 40, 7, 20] and list(scores.per_class.values()) == wanted["per_class"]
        assert told[-3:] == [(i, total) for i in (1, 2, 3)]
    assert isinstance(scores.confusion, torch.Tensor)


def test_one_map_and_a_stack_of_maps_are_images_too_and_absent_classes_are_nan(capsys):
    one = syn4seg.evaluate(LABEL, LABEL, base=[1, 4], novel=[5, 6])
    many = syn4seg.evaluate(np.stack([LABEL] * 3), np.stack([LABEL] * 3), base=[1, 4], novel=[5, 6], progress=True)
    assert one.base == many.base == one.novel == 1.0 and np.isnan(one.per_class[6])
    np.testing.assert_array_equal(many.confusion, 3 * one.confusion)
    said = capsys.readouterr()
    assert said.out == "" and "images" in said.err


# --------------------------------------------------------------------------------------------------- pictures
def panels_of(page: str) -> list[np.ndarray]:
    found = [np.frombuffer(base64.b64decode(data), np.uint8) for data in re.findall(r"base64,([^']+)'", page)]
    return [cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] for data in found]  # pyright: ignore


def test_a_sample_of_a_run_is_shown_with_every_label_its_classes_prompt_and_reason(finished, tmp_path):
    run = RunDir(finished[0])
    record = next(r for r in run.draw(1).records() if not r["reason"])
    picture = syn4seg.show(finished[0], record["sample_id"], draw=1)
    page = picture._repr_html_()
    assert record["prompt"] in page and record["sample_id"] in page and f"> {record['class']}<" in page
    image, *labels = panels_of(page)
    np.testing.assert_array_equal(image, read_image(run.image(record["class"], record["sample_id"])))
    assert picture.names == load_dataset(load(run.config))[1].index_names, "by class index, not by alphabet"
    names, seen = list(picture.legend), set()
    for stage, shown in zip(("draft", "kept", "relabeled", "label"), labels, strict=True):
        true = read_image(run.draw(1).label(stage, record["class"], record["sample_id"]))
        seen |= set(np.unique(true).tolist())
        for value in np.unique(true):
            assert len(np.unique(shown[true == value], axis=0)) == 1, "one colour per label value"
    assert len(names) == len(seen) == len(set(picture.legend.values())) and "background" in names
    picture.save(tmp_path / "x.png")
    picture.save(str(tmp_path / "x.html"))
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and page in (tmp_path / "x.html").read_text()
    with pytest.raises(ValueError, match=r"sample_id is 'hdig'; expected one of the 24 samples of draw 1, e.g. hdig-"):
        syn4seg.show(finished[0], "hdig", draw=1)
    with pytest.raises(ValueError, match=r"not a run \(no config.yaml\)"):
        syn4seg.show(tmp_path, record["sample_id"])
    with pytest.raises(ValueError, match=r"draw is 7; expected one of \[0, 1\]"):
        syn4seg.show(finished[0], record["sample_id"], draw=7)


def test_every_class_of_a_picture_has_the_colour_of_the_report_and_none_looks_like_the_background():
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    names = ["background", *(f"name {k}" for k in range(1, 255))]
    for given in ((), names):
        picture = syn4seg.show(Shown({}, None, {"label": label}), names=given)
        pixels = picture.panels["label (SABR)"].reshape(256, 3)
        for value, code in enumerate(colors_of(255)[1:], 1):
            assert bytes(pixels[value]).hex() == code[1:]
            assert np.abs(pixels[value].astype(int) - pixels[0]).max() > 100
        np.testing.assert_array_equal(pixels[[0, 255]], [picture.legend["background"], picture.legend["unlabeled"]])
    assert syn4seg.show(Shown({}, None, {"label": label[:1, :4]}), names=names).legend["name 3"] == tuple(pixels[3])


def test_a_picture_escapes_what_it_shows_and_needs_neither_image_nor_display():
    evil = {"sample_id": "x", "class": "dog", "prompt": "a <script>dog</script> & $\\bad{math}$", "reason": "fault: <b>"}
    labels = {"label": np.array([[0, 3], [255, 9]], np.uint8)}
    for picture in (
        syn4seg.show(Shown(evil, None, {})),
        syn4seg.show(Shown(evil, np.zeros((2, 2, 3), np.uint8), labels)),
        syn4seg.show(Shown(evil, None, {}, "missing <i>")),
        syn4seg.show(Shown({}, None, {})),
    ):
        page = picture._repr_html_()
        assert not re.search(r"<(script|b|i)>", page)
        assert picture._repr_png_()[:4] == b"\x89PNG"
    assert "rejected: fault: &lt;b&gt;" in syn4seg.show(Shown(evil, None, {}))._repr_html_()
    named = syn4seg.show(Shown(evil, None, labels), names=("background", "a", "b", "<c>"))
    assert list(named.legend) == ["background", "<c>", "class 9", "unlabeled"] and "&lt;c&gt;" in named._repr_html_()
    assert "matplotlib.pyplot" not in sys.modules


# ------------------------------------------------------------------------------------------------- costs nothing
def python(*words: str, cwd: Path | None = None) -> str:
    given = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, env=given, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_and_names_everything():
    code = (
        "import sys; before = set(sys.modules); import syn4seg\n"
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('syn4seg')))\n"
        "print([m for m in sys.modules if m.startswith('syn4seg')])\n"
        "print(set(syn4seg.__all__) <= set(dir(syn4seg)), hasattr(syn4seg, 'nothing'))\n"
        "syn4seg.filter_regions; print({'numpy', 'torch', 'ray'} & set(sys.modules))\n"
    )
    loaded, ours, named, then = python("-c", code).splitlines()
    assert (
        all("typing" in name or name == "collections.abc" for name in eval(loaded))
        and ours == "['syn4seg']"
        and named == "True False"
    )
    assert then == "{'numpy'}", "filtering arrays needs no torch"


@pytest.mark.parametrize("name", ["filter_regions", "relabel", "refine_boundary", "prompt_bank", "evaluate", "show"])
def test_an_example_runs_without_ray(name, tmp_path):
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); print('ray' in sys.modules)"
    said = python("-c", code, str(REPOSITORY / "examples" / f"{name}.py"), cwd=tmp_path).splitlines()
    assert len(said) >= 2 and said[-1] == "False"
    assert {p.name for p in tmp_path.iterdir()} == ({"sample.png", "sample.html"} if name == "show" else set())
