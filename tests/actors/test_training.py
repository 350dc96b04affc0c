"""Ray Train around the loops: what does not fit is refused, a mistake stays one sentence, a killed worker changes no bit."""

from __future__ import annotations

import json
import os
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.placement import preflight
from actors.training import WorkerContext, check_workers, fit, train_base_on_workers
from syn4seg.config.loading import load
from syn4seg.config.placement import TrainingConfig
from syn4seg.config.tree import Config
from syn4seg.data.datasets import EmbeddedDataset
from syn4seg.errors import UserError, WorkerError
from syn4seg.stages.base import make_base
from syn4seg.stages.setup import load_dataset
from syn4seg.store.rundir import RunDir
from tests.shared_batch import curve


def test_without_workers_the_loop_runs_in_this_process():
    reports = []

    def loop(arguments, context):
        context.report({"seen": arguments["x"]})
        return context

    context = fit(loop, {"x": 3}, TrainingConfig(), name="inline", device="cpu", progress=reports.append)
    assert context == WorkerContext(0, 1, "cpu", reports.append) and reports == [{"seen": 3}]


def test_workers_that_fit_are_accepted():
    preflight([], [{"CPU": 4}], TrainingConfig(workers=3))
    preflight([], [{"CPU": 2, "GPU": 1}], TrainingConfig(workers=1, gpus=0.5))
    preflight([], [{"CPU": 1}, {"CPU": 2, "GPU": 2}], TrainingConfig(workers=2, gpus=1, cpus=0.5))
    nodes = [{"CPU": 8}, {"CPU": 8, "GPU": 2, "accelerator_type:A100": 1}]
    preflight([], nodes, TrainingConfig(workers=2, gpus=1, accelerator="A100"))


@pytest.mark.parametrize(
    ("keys", "nodes", "message"),
    [
        ({"workers": 4}, [{"CPU": 4}], r"training 4 x 1 \+ 1 for reading.*has 4; placement.training.workers=3 would fit"),
        ({"workers": 1, "cpus": 8}, [{"CPU": 4}, {"CPU": 6}], r"training.cpus=8: one actor .* largest node has \(6\)"),
        ({"workers": 2, "gpus": 1}, [{"CPU": 8}], r"training.gpus=1: one actor .* largest node has \(0\)"),
        ({"workers": 3, "gpus": 2}, [{"CPU": 8, "GPU": 3}] * 2, "training.workers=3: only 2 actors of 2 GPUs fit"),
        ({"workers": 1, "resources": {"train": 1}}, [{"CPU": 8}], "training.resources: no node declares `train`"),
        (
            {"workers": 1, "gpus": 1, "accelerator": "H100"},
            [{"CPU": 8, "GPU": 1, "accelerator_type:L4": 1}],
            "H100: no node has one",
        ),
        ({"workers": 4, "gpus": 0.5}, [{"CPU": 8, "GPU": 2}], r"training.gpus=0.5: expected 0 or whole GPUs with .*workers=4"),
    ],
)
def test_workers_that_could_never_start_are_refused_with_the_numbers(keys, nodes, message):
    with pytest.raises(UserError, match=message):
        preflight([], nodes, TrainingConfig(**keys))


@pytest.mark.slow
def test_a_batch_that_workers_cannot_share_is_refused_before_anything_starts(ray_cluster):
    keys = ["base.checkpoint=train", "base.batch=8", "placement.training.workers=3"]
    with pytest.raises(UserError, match=r"base.batch=8 is not a multiple of placement.training.workers=3"):
        check_workers(load(None, keys))
    check_workers(load(None, [*keys, "placement.runner=inline"]))
    check_workers(load(None, [*keys, "base.batch=9"]))


class Deadly(EmbeddedDataset):
    """Kills its process when its `last` image is asked for, unless that has happened before."""

    mark: Path
    last = 18
    asked = 0

    def image(self, sample_id):
        self.asked += 1
        if self.asked == self.last and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(sample_id)


def _training(parts, group):
    from tests.actors.test_training import Deadly
    from tests.shared_batch import curve

    dataset = Deadly(24, 4)
    dataset.mark = Path(parts["mark"]) if group.rank == 1 else Path(__file__)
    found = curve(Path(parts["checkpoint"]), dataset)
    return {"losses": found["losses"], "state": {k: v.numpy() for k, v in found["state"].items()}, "config": parts["config"]}


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_of_an_epoch_changes_no_bit(ray_cluster, tmp_path):
    from tests.actors.test_training import _training

    found, handler, config = {}, signal.getsignal(signal.SIGINT), load(None, ["labeling.tau=0.7", "placement.training.workers=1"])
    for name in ("whole", "killed"):
        mark = tmp_path / name
        if name == "whole":
            mark.touch()
        parts = {"mark": str(mark), "checkpoint": str(tmp_path / f"{name}.pt"), "config": config}
        found[name] = fit(_training, parts, TrainingConfig(workers=2, max_failures=1), name=name)
    assert (tmp_path / "killed").exists()
    assert len(found["whole"]["losses"]) == 3 and found["killed"]["losses"] == found["whole"]["losses"][1:]
    for key, value in found["whole"]["state"].items():
        assert np.array_equal(value, found["killed"]["state"][key])
    assert found["whole"]["losses"] == pytest.approx(curve()["losses"], rel=1e-5)
    assert signal.getsignal(signal.SIGINT) is handler
    received = found["whole"]["config"]
    assert received == config and type(received) is Config and received is not config


@pytest.mark.slow
def test_a_mistake_is_one_sentence_and_not_tried_again(ray_cluster, tmp_path):
    folder = str(tmp_path)

    def loop(config, group):
        import tempfile

        tempfile.mkdtemp(prefix=f"{group.rank}-", dir=folder)
        raise UserError("data.fold=9: there is no\n such fold")

    with pytest.raises(UserError, match=r"^data.fold=9: there is no such fold$"):
        fit(loop, {}, TrainingConfig(workers=2, max_failures=1), name="mistake")
    ranks = [p.name[0] for p in tmp_path.iterdir()]
    assert ranks and len(ranks) == len(set(ranks))  # a worker that comes late does not begin at all


@pytest.mark.slow
def test_a_bug_is_a_fault_whose_traceback_names_the_line_and_a_lost_process_is_not(ray_cluster):
    def bug(arguments, context):
        return {}["the line of the bug"]

    with pytest.raises(WorkerError, match=r"^training failed: KeyError: 'the line of the bug'$") as caught:
        fit(bug, {}, TrainingConfig(workers=1, max_failures=0), name="bug")
    assert 'return {}["the line of the bug"]' in "".join(traceback.format_exception(caught.value))

    def killed(arguments, context):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"^training: a process was lost or did not start \(killed"):
        fit(killed, {}, TrainingConfig(workers=1, max_failures=0), name="killed")


@pytest.mark.slow
def test_the_base_stage_of_a_run_is_the_same_on_workers(ray_cluster, tmp_path):
    files, weights, losses = [], [], []
    for workers in (0, 1, 2):
        config = load(
            None,
            [
                "base.checkpoint=train",
                "data.train_images=32",
                "data.val_images=4",
                "base.epochs=1",
                "base.optimizer=sgd",
                f"placement.training.workers={workers}",
            ],
        )
        run = RunDir(tmp_path / str(workers))
        run.open(config)
        shown = []
        train = (lambda report, config=config, run=run: train_base_on_workers(config, run, report)) if workers else None
        make_base(config, run, *load_dataset(config), lambda *done, shown=shown: shown.append(done), train)
        assert shown == [(1, 1)]
        files.append(sorted(p.relative_to(run.root).as_posix() for p in run.root.rglob("*")))
        assert run.base_facts.read_text() == RunDir(tmp_path / "0").base_facts.read_text()
        state = torch.load(run.base.with_name("base-training.pt"), weights_only=True)
        weights.append(state["segmenter"])
        losses.append([line | {"time": 0} for line in map(json.loads, run.metrics.read_text().splitlines())])
    assert files[0] == files[1] == files[2]
    assert losses[0] == losses[1]
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
        torch.testing.assert_close(value, weights[2][key], rtol=1e-3, atol=1e-3)
