"""The stream: the same bytes however it is run, stopped or resumed; one bad row costs one row."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from actors import graph
from actors.graph import operators, stream, unfinished_rows
from actors.streaming import run_inline
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.models.generators import load_generator
from syn4seg.schema import LABEL_COLUMNS
from syn4seg.stages.checks import check_models
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.results import funnel, verify_run, write_manifest
from syn4seg.stages.setup import class_check
from syn4seg.store.images import read_image, write_image
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import StoredSample
from tests.shared_clip import save_clip


def quiet(*_):
    return None


def test_every_planned_sample_ends_with_one_record_and_its_labels(finish, fresh, small):
    run, names = fresh
    finish(load(None, small), run, names)
    plan = pq.read_table(run.plan).to_pylist()
    planned = {row["sample_id"] for row in plan if not row["padding"]}
    assert len(planned) == 24
    assert run.draw(0).done() == planned
    for record in run.draw(0).records():
        image = read_image(run.image(record["class"], record["sample_id"]))
        for stage in LABEL_COLUMNS:
            path = run.draw(0).label(stage, record["class"], record["sample_id"])
            assert path.is_file() == (stage != "label" or not record["reason"])
            if path.is_file():
                assert read_image(path).shape == image.shape[:2]


def test_the_last_generator_batch_is_padded_and_the_padding_leaves_no_file(finish, fresh, small):
    run, names = fresh
    plan = pq.read_table(run.plan)
    assert Counter(plan["batch"].to_pylist()) == dict.fromkeys(range(5), 5)
    assert sum(plan["padding"].to_pylist()) == 1
    finish(load(None, small), run, names)
    assert len(list(run.root.glob("images/*/*.png"))) == 24


@pytest.mark.parametrize(
    "keys",
    [
        ["placement.synthesis.batch=5"],
        ["placement.synthesis.batch=11"],
        ["placement.synthesis.batch=99", "placement.labeling.batch=1"],
    ],
)
def test_batch_sizes_of_the_pools_change_no_byte(finish, fresh, small, reference, keys):
    run, names = fresh
    assert finish(load(None, [*small, *keys]), run, names) == reference[0]


class Stop(Exception):
    """A person pressing Ctrl-C at a known moment."""


def test_a_stopped_run_is_finished_by_the_same_command_without_redoing_finished_samples(finish, fresh, small, reference):
    run, names = fresh
    config = load(None, [*small, "placement.synthesis.batch=5"])

    def stop_at_ten(done, *_):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        stream(config, run, names, 0, stop_at_ten)
    before = {p: p.stat().st_mtime_ns for p in run.root.glob("draws/0/records/*/*.json")}
    assert 10 <= len(before) < 24
    assert finish(config, run, names) == reference[0]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_a_deleted_or_damaged_file_is_made_anew_with_the_same_bytes(finish, fresh, small, reference):
    run, names = fresh
    config = load(None, small)
    finish(config, run, names)
    record = next(r for r in run.draw(0).records() if not r["reason"])
    run.draw(0).label("label", record["class"], record["sample_id"]).unlink()
    run.image(record["class"], record["sample_id"]).write_bytes(b"damaged")
    assert finish(config, run, names) == reference[0]


def test_repeating_a_refused_run_is_refused_again(fresh, small, monkeypatch):
    run, names = fresh

    class Broken:
        def generate(self, prompts, encoded, noise_seeds):
            raise RuntimeError("out of memory")

    monkeypatch.setattr(graph, "load_generator", lambda *_, **__: Broken())
    for _ in range(3):
        with pytest.raises(UserError, match="fault: synthesis: RuntimeError: out of memory"):
            stream(load(None, small), run, names, 0, quiet)


@pytest.mark.slow
def test_an_actor_that_cannot_start_is_one_sentence_and_no_traceback(fresh, small, tmp_path, ray_cluster):
    run, names = fresh
    (tmp_path / "sam.pth").write_bytes(b"not a checkpoint")
    config = load(None, [*small, "placement.runner=ray", f"refinement.model={tmp_path / 'sam.pth'}"])
    with pytest.raises(UserError, match=r"sam\.pth") as caught:
        stream(config, run, names, 0, quiet)
    assert "\n" not in str(caught.value)


def test_samples_lost_in_the_middle_of_a_batch_come_back_with_the_same_bytes(finish, fresh, small, reference):
    run, names = fresh
    config = load(None, small)
    finish(config, run, names)
    lost = ["hdig-ball-00001", "class_name-moon-00002", "hdig-heart-00002"]
    for sample in lost:
        name = sample.split("-")[1]
        run.image(name, sample).unlink()
        run.draw(0).record(name, sample).unlink()
    assert finish(config, run, names) == reference[0]


class Faulty:
    """The renderer, but images of one noise seed come out faulty."""

    def __init__(self, seed: int):
        self.seed, self.inner = seed, load_generator("renderer", steps=1, guidance=1.0, size=64)

    def generate(self, prompts, encoded, noise_seeds):
        images, faults = self.inner.generate(prompts, encoded, noise_seeds)
        return images, ["nan" if s == self.seed else f for s, f in zip(noise_seeds, faults, strict=True)]


def test_one_faulty_image_costs_one_row(fresh, small, prepared):
    run, names = fresh
    config = load(None, small)
    rows = unfinished_rows(pq.read_table(run.plan), set())
    bad = rows.to_pylist()[7]
    steps = operators(config, run, names, 0)
    steps[0] = replace(steps[0], kwargs=steps[0].kwargs | {"load": functools.partial(Faulty, bad["noise_seed"])})
    for _ in run_inline(rows, steps, 5):
        pass
    notes = run.quarantine()
    assert list(notes) == [bad["sample_id"]]
    assert notes[bad["sample_id"]]["reason"] == "fault: synthesis: nan image"
    assert not run.image(names[bad["class_id"]], bad["sample_id"]).exists()
    assert len(run.draw(0).done()) == 24
    write_manifest(run, 0)
    assert verify_run(run)[1] == []


def test_a_run_that_fails_everywhere_stops_with_the_most_frequent_reason(fresh, small, monkeypatch):
    run, names = fresh

    class Broken:
        def generate(self, prompts, encoded, noise_seeds):
            return np.zeros((len(prompts), 64, 64, 3), np.uint8), ["black"] * len(prompts)

    monkeypatch.setattr(graph, "load_generator", lambda *_, **__: Broken())
    with pytest.raises(UserError, match=r"of 24 samples are quarantined.*fault: synthesis: black image"):
        stream(load(None, small), run, names, 0, quiet)


def test_verify_sees_one_changed_pixel_a_missing_file_and_a_missing_record(finish, fresh, small):
    run, names = fresh
    config = load(None, small)
    digest = finish(config, run, names)
    record = next(r for r in run.draw(0).records() if not r["reason"])
    path = run.draw(0).label("label", record["class"], record["sample_id"])
    label = read_image(path)
    label[0, 0] ^= 1
    write_image(path, label)
    other, problems = verify_run(run)
    assert other != digest
    assert problems == [f"draw 0: label of {record['sample_id']} differs"]
    path.unlink()
    assert verify_run(run)[1] == [f"draw 0: label of {record['sample_id']} is missing"]
    run.draw(0).record(record["class"], record["sample_id"]).unlink()
    write_manifest(run, 0)
    assert any("not in both" in line for line in verify_run(run)[1])


def imported(run, small, folder, *keys):
    """A plan of four images of four sizes and one file that is no image."""
    from syn4seg.stages.checks import check
    from syn4seg.stages.plan import make_plan

    for k, name in enumerate(("ball", "donut", "moon", "heart")):
        write_image(folder / name / "a.png", np.full((40 + 8 * k, 64, 3), 90, np.uint8))
    (folder / "moon" / "b.jpg").write_bytes(b"not an image")
    config = load(None, [*small, "synthesis.source=folder", f"synthesis.root={folder}", *keys])
    run.plan.unlink()
    make_plan(config, run, check(config)[1], quiet, None, None)
    return config


def test_imported_images_of_any_size_are_labelled_and_a_bad_file_costs_one_row(tmp_path, fresh, small):
    run, names = fresh
    reasons = stream(imported(run, small, tmp_path / "in"), run, names, 0, quiet)
    assert sum(reasons.values()) == 5
    assert [r for r in reasons if r.startswith("fault: import:") and "b.jpg" in r]
    assert read_image(run.draw(0).label("draft", "moon", "import-moon-00000")).shape == (56, 64)
    assert json.loads(run.draw(0).record("moon", "import-moon-00001").read_text())["reason"].startswith("fault")


@pytest.mark.slow
def test_images_of_different_sizes_go_through_ray_with_the_same_bytes(finish, tmp_path, fresh, small, ray_cluster):
    run, names = fresh
    shutil.copytree(run.root, tmp_path / "other")
    other = RunDir(tmp_path / "other")
    plain = imported(run, small, tmp_path / "in")
    through_ray = imported(other, small, tmp_path / "in", "placement.runner=ray", "placement.refinement.batch=2")
    assert finish(through_ray, other, names) == finish(plain, run, names)


def test_a_gpu_that_is_not_there_is_refused_inline_too(small):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"placement\.labeling\.gpus=1.*no usable GPU"):
        graph.check_placement(load(None, [*small, "placement.labeling.gpus=1"]))


def test_a_stream_counts_each_sample_that_ended_once_and_says_all_that_have(fresh, small, monkeypatch):
    run, names = fresh
    ids = read_planned_samples(run)["sample_id"].to_pylist()
    run.draw(0).write(
        [
            StoredSample(
                {"sample_id": s, "class": "ball", "class_id": 9, "reason": f"no {s}", "prompt": "", "noise_seed": 1, "batch": 0}, {}
            )
            for s in ids[:8]
        ]
    )
    ended = [["", "small"], ["fault: labeling: Bad: row 3"], *[["small", ""]] * 6]
    batches = [{"reason": reasons, "synthesis_audit": ["{}"] * len(reasons)} for reasons in ended]
    monkeypatch.setattr(graph, "_run", lambda *_: iter(batches))
    kind, classified, reports = graph._kind, [], []
    monkeypatch.setattr(graph, "_kind", lambda reason: classified.append(reason) or kind(reason))
    config = load(None, [*small, "placement.max_quarantined=0.9"])
    result = graph.stream(config, run, names, 0, lambda done, _, reasons: reports.append((done, Counter(reasons))))
    expected = Counter(reason for reasons in ended for reason in reasons)
    assert result == expected and len(classified) == 8 + expected.total()
    before = Counter(f"no {s}" for s in ids[:8])
    for batch, (done, reasons) in enumerate(reports):
        so_far = before + Counter(reason for reasons in ended[:batch] for reason in reasons)
        assert (done, reasons) == (so_far.total(), so_far)
    pulses = [line for line in map(json.loads, run.metrics.read_text().splitlines()) if line.get("kind") == "pulse"]
    assert pulses[0]["reasons"] == before


def checked(small, folder, *keys):
    """A configuration with a picture check that rejects some images and not all."""
    save_clip(folder)
    return load(None, [*small, f"synthesis.check={folder}", *keys])


def test_images_that_do_not_show_their_class_are_rejected_counted_and_judged_the_same_after_a_stop(finish, fresh, small, tmp_path):
    run, names = fresh
    config = checked(small, tmp_path / "clip")
    check_models(config, run)

    def stop_at_ten(done, *_):
        if done >= 10:
            raise Stop

    with pytest.raises(Stop):
        stream(config, run, names, 0, stop_at_ten)
    finish(config, run, names)
    judge = class_check(config, names, "cpu")
    assert judge is not None
    records = list(run.draw(0).records())
    verdicts = {r["sample_id"]: judge(read_image(run.image(r["class"], r["sample_id"])), r["class_id"]) for r in records}
    rejected = {sample for sample, (reason, _) in verdicts.items() if reason}
    assert 0 < len(rejected) < 24 == len(records)
    assert {r["sample_id"] for r in records if r["reason"] == "class_not_shown"} == rejected
    assert all(r["audit"]["check"] == verdicts[r["sample_id"]][1] for r in records)
    assert funnel(run)["draws"]["0"]["rejected"]["class_not_shown"] == len(rejected) and not run.quarantine()
    other = {r["sample_id"]: r["reason"] for r in records if r["sample_id"] not in rejected}
    plain = RunDir(tmp_path / "plain")
    shutil.copytree(run.root, plain.root)
    shutil.rmtree(plain.root / "draws" / "0" / "records")
    finish(load(None, small), plain, names)
    assert other == {r["sample_id"]: r["reason"] for r in plain.draw(0).records() if r["sample_id"] in other}


def test_a_picture_check_that_cannot_be_loaded_ends_the_command_before_an_image_is_made(fresh, small, tmp_path):
    run, names = fresh
    config = checked(small, tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"synthesis\.check=.*cannot be loaded"):
        stream(config, run, names, 0, quiet)
    assert not list(run.root.glob("images/*/*.png"))
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"synthesis\.check=.*model\.safetensors is cut short or damaged"):
        check_models(config, run)


@pytest.mark.slow
def test_the_ray_stream_gives_the_same_bytes_and_verdicts_as_the_inline_loop(finish, fresh, small, tmp_path, ray_cluster):
    run, names = fresh
    shutil.copytree(run.root, tmp_path / "other")
    other = RunDir(tmp_path / "other")
    config = checked(small, tmp_path / "clip")
    keys = ["placement.runner=ray", "placement.synthesis.size=2", "placement.synthesis.batch=5", "placement.labeling.batch=3"]
    through_ray = checked(small, tmp_path / "clip", *keys)
    assert finish(through_ray, other, names) == finish(config, run, names)
    reasons = [r["reason"] for r in other.draw(0).records()]
    assert reasons == [r["reason"] for r in run.draw(0).records()] and "class_not_shown" in reasons


def from_support(small, root, *keys):
    """A run of four images of each class that start from support images, with its plan; and the configuration."""
    from syn4seg.models.generators import load_text_encoder
    from syn4seg.prompts.agents import load_agent
    from syn4seg.stages.checks import check
    from syn4seg.stages.plan import make_plan

    words = (
        "synthesis.model=embedded-sd3",
        "synthesis.support=image_to_image",
        "synthesis.steps=2",
        "synthesis.support_strength=0.5",
    )
    config = load(None, [*small, *words, "synthesis.images_per_class=2", "synthesis.class_name_bank=false", *keys])
    _, fold = check(config)
    run = RunDir(root)
    run.open(config)
    encoder = load_text_encoder("embedded-sd3", device="cpu")
    make_plan(config, run, fold, quiet, load_agent("grammar", world="embedded", seed=config.seed), encoder)
    return config, run, fold.index_names


def test_images_of_a_stream_start_from_the_support_image_of_their_class(small, tmp_path):
    from syn4seg.models.embeddings import EmbeddingStore
    from syn4seg.models.support_images import SupportImageGenerator
    from syn4seg.stages.setup import support_pictures

    config, run, names = from_support(small, tmp_path / "run")
    stream(config, run, names, None, quiet)
    made, plan = config.synthesis, run.read_plan().to_pylist()
    inner = load_generator(made.model, steps=2, guidance=made.guidance, size=64, device="cpu")
    generator = SupportImageGenerator(inner, support_pictures(config), 0.5)
    for number in {row["batch"] for row in plan}:
        batch = [row for row in plan if row["batch"] == number]
        targets, texts, rows, seeds = ([row[name] for row in batch] for name in ("class_id", "prompt", "prompt_row", "noise_seed"))
        expected = generator.make_for(targets, texts, EmbeddingStore(run.embeddings).rows(rows), seeds)
        for row, pixels in zip(batch, expected.images, strict=True):
            assert (read_image(run.image(names[row["class_id"]], row["sample_id"])) == pixels).all()
    assert not run.quarantine()


@pytest.mark.slow
def test_images_from_support_images_are_the_same_through_ray(small, tmp_path, ray_cluster):
    keys = ["placement.runner=ray", "placement.synthesis.size=2", "placement.synthesis.batch=5"]
    (config, run, names), (through_ray, other, _) = from_support(small, tmp_path / "a"), from_support(small, tmp_path / "b", *keys)
    stream(config, run, names, None, quiet)
    stream(through_ray, other, names, None, quiet)
    made, again = ({path.name: path.read_bytes() for path in r.root.glob("images/*/*.png")} for r in (run, other))
    assert len(made) == 8 and made == again
