"""The verbs in order: what a finished step does not repeat, and what processes on other nodes load."""

from __future__ import annotations

from actors.pipeline import Pipeline, node_inputs
from syn4seg.config.loading import load
from syn4seg.store.rundir import RunDir


class Quiet:
    """A display that nobody looks at."""

    def note(self, text: str) -> None:
        pass


def test_with_a_plan_there_is_nothing_to_encode_and_nothing_is_loaded(tmp_path):
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.plan.write_bytes(b"a plan")
    pipeline = Pipeline.__new__(Pipeline)
    pipeline.config = load(None, ["placement.runner=inline", f"synthesis.model={tmp_path / 'gone'}"])
    pipeline.run, pipeline.display = run, Quiet()  # type: ignore[assignment]
    pipeline.fold, pipeline.started = None, 0.0  # type: ignore[assignment]
    pipeline.prompts()


def test_training_workers_read_the_data_set_and_the_backbone_where_they_are(tmp_path):
    keys = [
        "data.source=folder",
        f"data.root={tmp_path}",
        "base.checkpoint=train",
        "segmenter.backbone=resnet50",
        "segmenter.weights=/mnt/w.pth",
    ]
    assert not {"data.root", "segmenter.weights"} & set(node_inputs(load(None, keys)))
    found = node_inputs(load(None, [*keys, "placement.training.workers=1"]))
    assert found["data.root"] == str(tmp_path) and found["segmenter.weights"] == "/mnt/w.pth"
