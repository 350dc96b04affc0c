"""Evaluation on workers equals one process exactly, for any number of them, also when one dies."""

from __future__ import annotations

import pytest

import actors.evaluation
from actors.evaluation import evaluate_run
from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.stages.scoring import Scorer, score_in_process, score_run
from tests.stages.test_scoring import KEYS, _same, quiet, scored  # noqa: F401 - a fixture


def _config(small, workers):
    keys = ["placement.runner=ray", f"placement.training.workers={workers}", "placement.training.max_failures=1"]
    return load(None, [*small, *KEYS, *keys])


@pytest.mark.slow
def test_any_number_of_workers_counts_the_same_pixels_as_one_process(scored, small, ray_cluster):  # noqa: F811
    _, run, dataset, fold = scored
    for workers in (1, 2, 3):
        config = _config(small, workers)
        steps = []
        found = evaluate_run(config, run, dataset, fold, lambda *done, steps=steps: steps.append(done))
        assert len(steps) == 3 and steps[-1] == (37, 37)
        if workers == 1:
            alone = score_run(config, run, dataset, fold, score_in_process(Scorer(config, run, dataset, fold)), quiet)
        assert _same(found, alone)


@pytest.mark.slow
def test_lost_workers_cost_the_chunks_that_they_had(scored, small, ray_cluster, tmp_path, monkeypatch):  # noqa: F811
    _, run, dataset, fold = scored
    config, folder = _config(small, 2), str(tmp_path)
    alone = score_run(config, run, dataset, fold, score_in_process(Scorer(config, run, dataset, fold)), quiet)
    plain = actors.evaluation.ScoringWorker

    def dying(times):
        """A worker that dies with its first chunk, as long as fewer than `times` have died so."""

        class Dying(plain):
            def score(self, ids):
                import os
                import signal
                import tempfile

                if len(os.listdir(folder)) < times:
                    tempfile.mkdtemp(dir=folder)
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().score(ids)

        return Dying

    for times in (1, 2):  # one of two, then both: all are started again
        for p in tmp_path.iterdir():
            p.rmdir() if p.name.startswith("tmp") else None
        monkeypatch.setattr(actors.evaluation, "ScoringWorker", dying(times + 1))  # the run itself is in the folder
        assert _same(evaluate_run(config, run, dataset, fold, quiet), alone)
    monkeypatch.setattr(actors.evaluation, "ScoringWorker", dying(100))
    with pytest.raises(UserError, match=r"all evaluation workers were lost .*max_failures"):
        evaluate_run(config, run, dataset, fold, quiet)


@pytest.mark.slow
def test_what_a_worker_says_is_one_sentence(scored, small, ray_cluster):  # noqa: F811
    _, run, dataset, fold = scored
    run.draw(0).checkpoint("apf").unlink()
    with pytest.raises(UserError, match=r"apf.safetensors: missing; run `syn4seg train` .*before evaluating$"):
        evaluate_run(_config(small, 1), run, dataset, fold, quiet)
