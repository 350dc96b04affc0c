"""A run that starts from somebody's segmentation network: refused before anything loads, or carried to the end."""

from __future__ import annotations

import json

import pytest
import torch

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.segmenter.network import load_segmenter
from syn4seg.stages.base import make_base
from syn4seg.stages.checks import check, check_files
from syn4seg.stages.setup import digest_inputs, load_dataset
from syn4seg.store.rundir import RunDir
from tests.shared_networks import saved_network


@pytest.fixture(scope="module")
def classes():
    """Names of base and novel classes of the embedded world's fold 0."""
    fold = load_dataset(load(None, []))[1]
    return [fold.names[k - 1] for k in fold.base], [fold.names[k - 1] for k in fold.novel]


def test_a_run_from_a_segformer_goes_to_the_end_and_says_what_it_started_from(small, classes, tmp_path, syn4seg):
    base, _ = classes
    labels = ("sky", *reversed(base))
    own = saved_network(tmp_path / "net", labels=labels)
    words = [*small, f"base.checkpoint={tmp_path / 'net'}"]
    out = tmp_path / "run"
    code, _, error = syn4seg("run", *words, "--out", out)
    assert code == 0, error
    facts = json.loads((out / "checkpoints/base.json").read_text())
    assert facts["family"] == "SegformerForSemanticSegmentation of transformers" and facts["knows_novel"] == []
    assert facts["notes"] == [f"rows of the base classes, in their order: {list(range(len(base), 0, -1))} of {len(labels)}"]
    net, learned = load_segmenter(out / "checkpoints/base.safetensors")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = own(x).logits[:, [0, *range(len(base), 0, -1)]]
        assert (net(x) - expected).abs().max() < 0.01 * expected.abs().max()
    assert learned["base"] == base and learned["sha256"] == facts["sha256"]
    results = json.loads((out / "results.json").read_text())
    assert results["protocol"]["backbone"] == str(tmp_path / "net")
    assert syn4seg("verify", out)[0] == 0
    code, printed, _ = syn4seg("audit", out)
    assert code == 0 and "SegformerForSemanticSegmentation of transformers" in printed
    code, _, error = syn4seg("plan", *words)
    assert code == 0, error
    with pytest.raises(UserError, match=r"a run's copy of a network of transformers; .*--reuse RUN"):
        check(load(None, [*small, f"base.checkpoint={out / 'checkpoints/base.safetensors'}"]))


def test_several_other_labels_become_one_background_and_known_novel_classes_are_warned_of(small, classes, tmp_path):
    base, novel = classes
    saved_network(tmp_path / "net", labels=("sky", "wall", *base[1:], novel[0], "first"))
    words = [*small, f"base.checkpoint={tmp_path / 'net'}"]
    with pytest.raises(UserError, match=f"does not know the base class '{base[0]}'; it has sky, wall"):
        check(load(None, words))
    words.append(f"base.names={{{base[0]}: first}}")
    config = load(None, words)
    run = RunDir(tmp_path / "run")
    dataset, fold = check(config, run)
    warnings = check_files(config, dataset, fold, run)
    assert any(f"has learned {novel[0]} with masks" in line for line in warnings)
    make_base(config, run, dataset, fold, lambda *_: None)
    facts = json.loads(run.base_facts.read_text())
    assert facts["knows_novel"] == [novel[0]] and "stands for 3 other labels" in facts["notes"][1]
    (one, _), digest = load_segmenter(run.base), digest_inputs(config)["base.checkpoint"]
    again = RunDir(tmp_path / "again")
    make_base(config, again, dataset, fold, lambda *_: None)
    two = load_segmenter(again.base)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    saved_network(tmp_path / "net", "upernet-resnet", labels=("sky", "wall", *base[1:], novel[0], "first"))
    assert digest_inputs(config)["base.checkpoint"] != digest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segmenter.weights=x.pth"], "segmenter.weights=x.pth: base.checkpoint=.* is a whole network"),
        (["segmenter.align_corners=true"], "set segmenter.align_corners=false"),
        (["base.names={nothing: sky}"], "'nothing' is no class of the data set"),
        (["base.checkpoint=nowhere"], "base.checkpoint=nowhere: no such file, folder or hub id"),
        (["base.checkpoint=some/network"], "cannot be fetched from the hub .*hf download some/network --local-dir FOLDER"),
        (["base.checkpoint=torchvision:resnet50"], "torchvision has no segmentation network 'resnet50'; expected one of fcn_"),
        (["base.checkpoint=train", "base.names={ball: sky}"], "base.names says what a network calls the base classes"),
    ],
)
def test_keys_that_contradict_a_network_are_refused_before_anything_is_made(small, classes, tmp_path, words, message):
    saved_network(tmp_path / "net", labels=("sky", *classes[0]))
    with pytest.raises(UserError, match=message):
        check(load(None, [*small, f"base.checkpoint={tmp_path / 'net'}", *words]))
