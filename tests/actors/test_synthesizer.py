"""Want of memory, faults and what is said about them: seeds and order never change, and a bad image costs one image."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from actors.columns import FAULT
from actors.synthesizer import Importer, Synthesizer, audit_warnings, out_of_memory
from actors.writer import QuarantineWriter
from syn4seg.models.embeddings import Encoded, save_embeddings
from syn4seg.models.generators import load_generator, load_text_encoder
from syn4seg.models.protocols import AuditingGenerator, GeneratedBatch
from syn4seg.store.files import read_json
from syn4seg.store.images import read_image, write_image
from syn4seg.store.rundir import RunDir
from syn4seg.store.samples import notes_file

NAMES, PROMPTS = ("background", "star"), [f"a {size} red star" for size in ("small", "big")]
TOO_MUCH = "CUDA out of memory.\n Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 8.00 GiB"


class Card:
    """The renderer on a card with room for so many images at once; `sent` lists the noise seeds of every batch tried."""

    def __init__(self, room: int, never: tuple[int, ...] = (), error: Exception | None = None):
        self.room, self.never, self.error = room, never, error or torch.OutOfMemoryError(TOO_MUCH)
        self.inner, self.sent = load_generator("renderer", steps=1, guidance=1.0, size=32), []

    def generate(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]):
        self.sent.append(list(noise_seeds))
        if len(prompts) > self.room or set(noise_seeds) & set(self.never):
            raise self.error
        return self.inner.generate(prompts, encoded, noise_seeds)


class Careful(Card):
    """A card whose image of one seed came out sound only in float32, and that of another not at all."""

    def make(self, prompts: list[str], encoded: Encoded, noise_seeds: list[int]) -> GeneratedBatch:
        images, faults = self.generate(prompts, encoded, noise_seeds)
        audit: list[dict[str, Any]] = [{} for _ in prompts]
        for i, seed in enumerate(noise_seeds):
            if seed in (11, 12):
                audit[i] = {"first_fault": "nan", "retried": "float32"} | ({"precision": "float32"} if seed == 11 else {})
                faults[i] = "" if seed == 11 else "nan"
        return GeneratedBatch(images, faults, audit)

    def facts(self) -> dict[str, Any]:
        return {"model": "card", "dtype": "bfloat16"}


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    save_embeddings(made.embeddings, load_text_encoder("renderer").encode(PROMPTS))
    return made


def rows(batches: int, size: int) -> dict[str, np.ndarray]:
    """Samples s10, s11... with noise seeds 10, 11..., in `batches` batches of `size`."""
    seeds = np.arange(10, 10 + batches * size)
    return {
        "sample_id": np.array([f"s{s}" for s in seeds], object),
        "class_id": np.ones(len(seeds), np.int32),
        "prompt": np.array([PROMPTS[s % 2] for s in seeds], object),
        "prompt_row": (seeds % 2).astype(np.int32),
        "noise_seed": seeds,
        "batch": np.repeat(np.arange(batches), size),
        "todo": np.ones(len(seeds), bool),
        **{name: np.array([""] * len(seeds), object) for name in ("image_at", "reason", "traceback")},
    }


def synthesize(run: RunDir, card: Card, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    out = Synthesizer(str(run.root), NAMES, lambda: card, int(np.sum(given["batch"] == given["batch"][0])))(given)
    return out, [json.loads(text) for text in out["synthesis_audit"]]


def reference(given: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every image drawn alone."""
    inner, encoder = load_generator("renderer", steps=1, guidance=1.0, size=32), load_text_encoder("renderer")
    return [
        inner.generate([p], encoder.encode([p]), [int(s)])[0][0] for p, s in zip(given["prompt"], given["noise_seed"], strict=True)
    ]


@pytest.mark.parametrize(
    ("room", "size", "tried"),
    [
        (8, 8, [8, 8]),
        (4, 8, [8, 4, 4, 4, 4]),
        (3, 8, [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]),
        (3, 5, [5, 3, 2, 3, 2]),
        (1, 4, [4, 2, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_and_later_ones_start_at_the_size_that_worked(run, room, size, tried):
    card, given = Card(room), rows(2, size)
    out, audits = synthesize(run, card, given)
    assert [len(seeds) for seeds in card.sent] == tried
    assert list(out["reason"]) == [""] * 2 * size
    for image, expected in zip(out["image"], reference(given), strict=True):
        np.testing.assert_array_equal(image, expected)
    made = [seeds for seeds in card.sent if len(seeds) <= room]
    assert [seed for seeds in made for seed in seeds] == given["noise_seed"].tolist(), "order or seeds changed"
    short = [len(seeds) for seeds in made for _ in seeds]
    assert audits == [{"made_in_batch": n, "planned_batch": size} if n < size else {} for n in short]


def test_only_an_image_that_fits_not_even_alone_is_quarantined(run):
    given = rows(1, 8)
    out, audits = synthesize(run, Card(8, never=(13,)), given)
    assert [bool(reason) for reason in out["reason"]] == [i == 3 for i in range(8)]
    assert out["reason"][3].startswith(FAULT + "synthesis: OutOfMemoryError: " + " ".join(TOO_MUCH.split()))
    assert "in generate" in out["traceback"][3] and not any(out["traceback"][:3])
    assert audits[2] == {"made_in_batch": 1, "planned_batch": 8} and audits[3] == {}
    for i, expected in enumerate(reference(given)):
        assert i == 3 or (np.asarray(out["image"][i]) == expected).all()


def test_every_way_to_run_out_of_memory_is_recognised_and_no_other_error():
    for error in (
        torch.OutOfMemoryError(TOO_MUCH),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes"),
    ):
        assert out_of_memory(f"{type(error).__name__}: {error}")
    assert not out_of_memory("RuntimeError: CUDA error: an illegal memory access was encountered")


def test_a_batch_that_fails_once_is_made_again_whole(run):
    class Loose(Card):
        def generate(self, prompts, encoded, noise_seeds):
            self.sent.append(noise_seeds)
            if len(self.sent) == 1:
                raise RuntimeError("a wire is loose")
            return self.inner.generate(prompts, encoded, noise_seeds)

    card = Loose(8)
    out, audits = synthesize(run, card, rows(2, 4))
    assert not any(out["reason"]) and audits == [{}] * 8
    assert [len(seeds) for seeds in card.sent] == [4, 4, 4]


def test_a_row_that_always_fails_costs_itself_and_no_batch_mate(run):
    card = Card(8, never=(12,), error=KeyError("colour"))
    out, audits = synthesize(run, card, rows(2, 4))
    assert [bool(reason) for reason in out["reason"]] == [i == 2 for i in range(8)]
    assert out["reason"][2].startswith(FAULT + "synthesis: KeyError")
    assert [len(seeds) for seeds in card.sent] == [4, 4, 1, 1, 1, 1, 4]
    assert audits == [{"made_in_batch": 1, "planned_batch": 4} if i in (0, 1, 3) else {} for i in range(8)]


def test_a_row_that_has_a_reason_already_is_not_made(run):
    card, given = Card(8), rows(1, 4)
    given["reason"][1] = "fault: synthesis: killed its process"
    out, audits = synthesize(run, card, given)
    assert card.sent == [[10, 12, 13]] and list(out["reason"]) == list(given["reason"])
    assert audits[0] == {"made_in_batch": 3, "planned_batch": 4}


@pytest.fixture(params=["files", "sharded"])
def either(run, request):
    run.config.write_text(f"layout: {request.param}\n")
    return RunDir(run.root)


def test_a_call_that_is_repeated_makes_no_image_twice(either):
    first, _ = synthesize(either, Careful(8), rows(2, 5))
    card = Careful(8)
    again, audits = synthesize(either, card, rows(2, 5) | {"reason": first["reason"]})
    assert card.sent == [] and audits[1]["precision"] == "float32"
    assert list(again["image_digest"]) == list(first["image_digest"])


class Dying(Card):
    def generate(self, prompts, encoded, noise_seeds):
        if self.sent:
            raise SystemExit
        return super().generate(prompts, encoded, noise_seeds)


def test_a_process_that_ends_in_its_second_batch_leaves_the_images_of_the_first(either):
    given = rows(2, 4)
    with pytest.raises(SystemExit):
        synthesize(either, Dying(8), given)
    assert sorted(RunDir(either.root).samples.images()["sample_id"].to_pylist()) == list(given["sample_id"][:4])
    card = Card(8)
    out, _ = synthesize(either, card, given)
    assert card.sent == [given["noise_seed"][4:].tolist()]
    for image, expected in zip(out["image"], reference(given), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_a_fault_mended_in_safer_precision_is_no_fault_and_the_audit_says_so(run):
    card = Careful(8)
    assert isinstance(card, AuditingGenerator) and not isinstance(Card(8), AuditingGenerator)
    out, audits = synthesize(run, card, rows(1, 4))
    assert list(out["reason"]) == ["", "", FAULT + "synthesis: nan image", ""]
    assert audits == [
        {},
        {"first_fault": "nan", "retried": "float32", "precision": "float32"},
        {"first_fault": "nan", "retried": "float32"},
        {},
    ]
    assert [read_json(path) for path in run.root.glob("generators/*.json")] == [{"model": "card", "dtype": "bfloat16"}]
    assert not run.metrics.exists(), "metrics.jsonl has one writer, the driver"


def test_what_is_said_about_an_image_lies_beside_it_and_is_read_again_with_it(run):
    out, audits = synthesize(run, Careful(2), rows(1, 4))
    assert audits[1] == {"first_fault": "nan", "retried": "float32", "precision": "float32", "made_in_batch": 2, "planned_batch": 4}
    QuarantineWriter(str(run.root), NAMES)(out)
    assert json.loads(run.quarantined("s12").read_text())["audit"] == audits[2]
    assert json.loads(notes_file(run.image("star", "s11")).read_text()) == audits[1]
    given = {name: values[[0, 1, 3]] for name, values in rows(1, 4).items()}
    there = dict(zip(*run.samples.images().to_pydict().values(), strict=True))
    given["image_at"] = np.array([there[s] for s in given["sample_id"]], object)
    again, read = synthesize(run, Card(0), given)
    assert read == [audits[i] for i in (0, 1, 3)] and not any(again["reason"])


def test_about_an_ordinary_image_nothing_is_written(run):
    out, audits = synthesize(run, Card(8), rows(1, 3))
    QuarantineWriter(str(run.root), NAMES)(out)
    assert audits == [{}] * 3
    assert sorted(p.name for p in (run.root / "images" / "star").iterdir()) == ["s10.png", "s11.png", "s12.png"]


def test_imported_images_have_the_same_columns(run, tmp_path):
    write_image(tmp_path / "in" / "a.png", np.full((20, 30, 3), 9, np.uint8))
    given = rows(1, 1) | {"prompt": np.array(["a.png"], object)}
    out = Importer(str(run.root), NAMES, str(tmp_path / "in"))(given)
    assert read_image(run.image("star", "s10")).shape == (20, 30, 3)
    assert set(out) == {*given, *Importer.adds} and list(out["synthesis_audit"]) == ["{}"]


def test_a_person_is_told_once_how_many_images_were_made_how():
    short, mended = {"made_in_batch": 4, "planned_batch": 8}, {"precision": "float32", "first_fault": "black"}
    lines = audit_warnings([{}, short, short | mended, {"made_in_batch": 2, "planned_batch": 8}, {"blocks_run": 9}])
    assert len(lines) == 3
    assert lines[0].startswith("1 images were made in batches of 2 instead of 8") and "synthesis.batch=2" in lines[0]
    assert lines[1].startswith("2 images were made in batches of 4 instead of 8")
    assert lines[2] == "1 images came out faulty and were made again (float32)"
    assert audit_warnings([{}] * 5) == []


class Starting(Card):
    """A card that starts from support images, and is told the class of every image."""

    def make_for(self, targets, prompts, encoded, noise_seeds) -> GeneratedBatch:
        return GeneratedBatch(*self.generate(prompts, encoded, noise_seeds), [{"started_from": f"{t}"} for t in targets])

    def facts(self) -> dict[str, Any]:
        return {"model": "card", "support": "image_to_image"}


def test_a_generator_that_starts_from_support_images_is_told_the_class_of_each_image_in_halves_too(run):
    plain, given = synthesize(run, Card(9), rows(1, 4))[0], rows(1, 4)
    given["sample_id"] = np.array([f"t{i}" for i in range(4)], object)
    out, audits = synthesize(run, Starting(2), given)
    assert [audit["started_from"] for audit in audits] == ["1"] * 4 and audits[0]["made_in_batch"] == 2
    assert all((a == b).all() for a, b in zip(out["image"], plain["image"], strict=True))
    assert read_json(next((run.root / "generators").glob("*.json")))["support"] == "image_to_image"
