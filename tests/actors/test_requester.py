"""Images from a service in a run: none is asked for twice, none beyond what is allowed, and the key is written nowhere."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from typing import Any

import numpy as np
import pytest

from actors.graph import stream
from actors.requester import Requester
from syn4seg.config.loading import load
from syn4seg.config.tree import Config
from syn4seg.errors import UserError
from syn4seg.exports.lineage import shared_columns
from syn4seg.models.generators import load_generator, load_text_encoder
from syn4seg.planning.estimate import estimate
from syn4seg.planning.measure import measure
from syn4seg.planning.rates import stated_rates
from syn4seg.planning.workload import facts_of, samples_of
from syn4seg.prompts.agents import load_agent
from syn4seg.stages.checks import check
from syn4seg.stages.plan import make_plan, read_planned_samples
from syn4seg.stages.results import protocol, verify_run, write_manifest
from syn4seg.stages.reuse import reuse
from syn4seg.store.images import read_image
from syn4seg.store.rundir import RunDir
from tests.shared_endpoint import KEY, Endpoint, drawn, failed, picture

FEW = ("synthesis.images_per_class=2", "synthesis.class_name_bank=false", "synthesis.key_variable=A_KEY", "synthesis.timeout=60")
PLANNED = 8
"""Images of such a run: four classes, two of each."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", KEY)


def paint(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Another image for every prompt and seed."""
    return drawn(picture((96, 96), body["seed"]), revised_prompt=f"{body['prompt']} {KEY}")


def configured(small, server: Endpoint, *keys: str) -> Config:
    about = ("synthesis.source=api", "synthesis.model=painter", f"synthesis.base_url={server.url}", "synthesis.max_images=8")
    return load(None, [*small, *about, *FEW, *keys])


@pytest.fixture
def begin(prepared, tmp_path):
    """A function that begins a run of a configuration: with a plan, the base checkpoint and a registered support draw."""
    old, names = prepared

    def opened(config: Config) -> tuple[RunDir, tuple[str, ...]]:
        run = RunDir(tmp_path / "asked")
        run.open(config)
        for folder in ("checkpoints", "draws"):
            shutil.copytree(old.root / folder, run.root / folder)
        agent = load_agent("grammar", world="natural", seed=0)
        encoder = load_text_encoder(config.synthesis.generator)
        make_plan(config, run, check(config)[1], lambda _: None, agent, encoder)
        return run, names

    return opened


def streamed(config: Config, run: RunDir, names, draw: int | None = 0) -> Counter:
    return stream(config, run, names, draw, lambda *_: None)


@pytest.mark.parametrize("layout", ["files", "sharded"])
def test_every_planned_image_is_asked_for_once_stored_labelled_and_never_asked_for_again(begin, small, layout):
    with Endpoint(paint) as server:
        config = configured(small, server, f"layout={layout}")
        run, names = begin(config)
        assert streamed(config, run, names, None).total() == PLANNED == len(server.asked)
        rows = {r["sample_id"]: r for r in read_planned_samples(run).to_pylist()}
        assert Counter(a["prompt"] for a in server.asked) == Counter(r["prompt"] for r in rows.values())
        assert sorted(a["seed"] for a in server.asked) == sorted(r["noise_seed"] % 2**31 for r in rows.values())
        assert not any(reason.startswith("fault") for reason in streamed(config, run, names))
        assert len(server.asked) == PLANNED
    write_manifest(run, 0)
    assert verify_run(run)[1] == []
    for record in run.draw(0).records():
        service = record["audit"]["service"]
        assert service["seed"] == rows[record["sample_id"]]["noise_seed"] % 2**31
        assert service["revised_prompt"] == f"{record['prompt']} ***"
    if layout == "files":
        image = read_image(run.image(record["class"], record["sample_id"]))
        assert image.shape == (64, 64, 3)
    facts = [json.loads(path.read_text()) for path in run.root.glob("generators/*.json")]
    assert [(f["model"], f["service"], f["reproducible"]) for f in facts] == [("painter", "127.0.0.1", False)]
    assert not any(KEY.encode() in path.read_bytes() for path in run.root.rglob("*") if path.is_file())


def test_a_refused_prompt_costs_its_image_and_says_why(begin, small):
    with Endpoint(paint) as server:
        config = configured(small, server, "placement.max_quarantined=0.5")
        run, names = begin(config)
        bad = read_planned_samples(run).to_pylist()[3]

        def choosy(body):
            refused = failed(400, {"message": f"unsafe {KEY}", "code": "content_policy_violation"})
            return refused if body["seed"] == bad["noise_seed"] % 2**31 else paint(body)

        server.answers = [choosy]
        reasons = streamed(config, run, names)
        assert len(server.asked) == PLANNED and streamed(config, run, names).total() == 0 and len(server.asked) == PLANNED
        (note,) = run.quarantine().values()
        assert note["sample_id"] == bad["sample_id"] and KEY not in str(note)
        assert note["reason"].startswith("fault: synthesis: the service refuses the prompt: ") and note["reason"] in reasons
        run.quarantined(bad["sample_id"]).unlink()
        server.answers = [paint]
        assert not any(r.startswith("fault") for r in streamed(config, run, names)) and len(server.asked) == PLANNED + 1
        assert json.loads(run.requests(bad["sample_id"]).read_text()) == {"asked": 1}, "a refusal has made no image"


def test_a_wrong_key_stops_the_run_at_once_and_the_same_command_goes_on(begin, small):
    with Endpoint(paint, paint, paint, failed(401, f"wrong key {KEY}")) as server:
        config = configured(small, server)
        run, names = begin(config)
        with pytest.raises(UserError, match=r"environment variable A_KEY to a key that may use painter") as caught:
            streamed(config, run, names)
        assert len(server.asked) == 4 and KEY not in str(caught.value) and not run.quarantine()
        server.answers = [paint]
        streamed(config, run, names)
        assert len(server.asked) == 4 + PLANNED - 3
        assert all(json.loads(path.read_text()) == {"asked": 1} for path in run.root.glob("requests/*.json"))


def lost(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """A reply that the service has been paid for and nobody can read."""
    return 200, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"x"


def test_no_stop_and_no_resumption_asks_for_more_than_the_share_of_an_image(begin, small, monkeypatch):
    monkeypatch.setattr("syn4seg.models.endpoint.time.sleep", lambda _: None)
    with Endpoint(lost) as server:
        config = configured(small, server, "synthesis.max_images=17", "placement.max_quarantined=1")
        run, names = begin(config)
        reasons = streamed(config, run, names, None)
        assert len(server.asked) == 2 * PLANNED <= 17, "each image may be asked for twice"
        assert all("asked for 2 times, its share of synthesis.max_images; raise that" in reason for reason in reasons)
        shutil.rmtree(run.root / "quarantined")
        streamed(config, run, names, None)
        assert len(server.asked) == 2 * PLANNED
        shutil.rmtree(run.root / "quarantined")
        server.answers = [paint]
        more = configured(small, server, "synthesis.max_images=24", "placement.max_quarantined=1")
        assert streamed(more, run, names, None) == {"": PLANNED} and len(server.asked) == 3 * PLANNED
        run.requests("hdig-ball-00000").write_text('{"asked": "none"}')
        with pytest.raises(UserError, match=r"requests/hdig-ball-00000\.json: asked: input should be a valid integer"):
            Requester(str(run.root), names, more.synthesis)._asked("hdig-ball-00000")


def test_a_run_that_takes_over_the_images_of_another_asks_for_none_and_keeps_the_counts(begin, small, tmp_path):
    with Endpoint(paint) as server:
        config = configured(small, server)
        run, names = begin(config)
        streamed(config, run, names, None)
        other = RunDir(tmp_path / "other")
        other.open(config)
        assert "images" in reuse(run, other, config)
        assert streamed(config, other, names, None).total() == 0 and len(server.asked) == PLANNED
        assert len(list(other.root.glob("requests/*.json"))) == PLANNED


def test_a_count_is_written_before_the_request_is_sent(begin, small):
    with Endpoint(paint) as server:
        config = configured(small, server)
        run, names = begin(config)
        seen = []

        def looking(body):
            seen.append(len(list(run.root.glob("requests/*.json"))))
            return paint(body)

        server.answers = [looking]
        streamed(config, run, names, None)
        assert seen == list(range(1, PLANNED + 1))


def test_a_plan_that_needs_more_than_is_allowed_is_refused_before_anything_is_sent(begin, small):
    with Endpoint(paint) as server:
        config = configured(small, server)
        run, names = begin(config)
        less = configured(small, server, "synthesis.max_images=7")
        with pytest.raises(UserError, match=r"synthesis\.max_images=7: the plan needs 8 images.*nothing is asked for"):
            check(less)
        with pytest.raises(UserError, match=r"synthesis\.max_images=7"):
            streamed(less, run, names)
        assert check(configured(small, server, "synthesis.max_images=8")) and not server.asked
        with pytest.raises(UserError, match=r"--measure: with synthesis.source=api it would ask"):
            measure(config, 2)
        with pytest.raises(UserError, match=r"synthesis.compile=True: with synthesis.source=api the network runs elsewhere"):
            check(configured(small, server, "synthesis.compile=true"))
        with pytest.raises(UserError, match=r"synthesis\.source=api"):
            load_generator(config.synthesis.generator, steps=1, guidance=1, size=64)
        facts = facts_of(config)
        plan = estimate(config, facts, stated_rates())
        price = f"price of {samples_of(config, facts)[0]} images of the service painter (synthesis.max_images=8)"
        assert any(price in note for note in plan.notes)
        assert "synthesis" not in [line.stage for line in plan.lines] and not server.asked


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["synthesis.model=renderer"], r"set synthesis\.model to the name of an image model"),
        (["synthesis.max_images=null"], r"synthesis\.max_images is empty.*may cost money"),
        (["synthesis.base_url=http://me:k@host/v1"], r"synthesis\.base_url holds a user name or a key"),
        ([f"synthesis.key_variable={KEY}"], r"synthesis\.key_variable is not the name of an environment variable"),
    ],
)
def test_a_service_that_is_not_wholly_described_or_holds_a_key_is_refused(small, keys, said):
    words = ["synthesis.source=api", "synthesis.model=painter", "synthesis.max_images=99", *keys]
    with pytest.raises(UserError, match=said) as caught:
        load(None, [*small, *words])
    assert KEY not in str(caught.value)


def test_records_name_the_service(small, tmp_path):
    with Endpoint(paint) as server:
        config = configured(small, server)
        facts = protocol(config, check(config)[1])
        assert facts["generator"] == "api:painter" and facts["transductive"] is False
        assert shared_columns(RunDir(tmp_path / "none"), config)["generator"] == "api:painter"


@pytest.mark.slow
def test_under_ray_no_image_is_asked_for_twice_either(begin, small, ray_cluster):
    with Endpoint(paint) as server:
        keys = ["placement.runner=ray", "placement.synthesis.size=2", "placement.synthesis.batch=2", "synthesis.batch=2"]
        config = configured(small, server, *keys)
        run, names = begin(config)
        assert not any(r.startswith("fault") for r in streamed(config, run, names))
        assert len(server.asked) == PLANNED == len({a["seed"] for a in server.asked})
        assert streamed(config, run, names).total() == 0 and len(server.asked) == PLANNED
        there = run.image("ball", "hdig-ball-00000")
        there.unlink()
        server.answers = [failed(401, "no")]
        more = configured(small, server, *keys, "synthesis.max_images=99")
        with pytest.raises(UserError, match="environment variable A_KEY to a key that may use painter") as caught:
            streamed(more, run, names)
        assert "\n" not in str(caught.value)
    assert np.asarray(read_image(run.image("ball", "hdig-ball-00001"))).shape == (64, 64, 3)
