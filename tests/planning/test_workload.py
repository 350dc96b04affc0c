"""What a run has to do: facts of a data set without its files, counts as in a real plan."""

from __future__ import annotations

import pytest

from syn4seg.config.loading import load
from syn4seg.errors import UserError
from syn4seg.planning.workload import WorkloadFacts, facts_of, prompts_of, samples_of


def test_published_data_sets_need_no_files():
    def of(*words):
        return facts_of(load(None, ["data.root=/nowhere", "base.checkpoint=train", *words]))

    assert of("data.source=pascal") == WorkloadFacts(5, 15, 5953, 1449)
    assert of("data.source=pascal", "data.train_list=trainaug") == WorkloadFacts(5, 15, 10582, 1449)
    assert of("data.source=coco") == WorkloadFacts(20, 60, 82081, 40137)
    assert of("data.source=coco", "data.train_images=100", "data.val_images=7") == WorkloadFacts(20, 60, 100, 7)
    with pytest.raises(UserError, match=r"data\.source=folder.*data\.root"):
        of("data.source=folder")


def test_the_embedded_world_is_known_as_it_is():
    from syn4seg.stages.setup import load_dataset

    for words in ([], ["data.train_images=50", "data.val_images=9"]):
        config = load(None, words)
        assert facts_of(config) == facts_of(config, *load_dataset(config))


def test_the_counts_are_those_of_a_real_plan(prepared, small):
    import pyarrow.parquet as pq

    run, _ = prepared
    config = load(None, small)
    plan = pq.read_table(run.plan)
    samples, images = samples_of(config, facts_of(config))
    assert images == plan.num_rows and images % config.synthesis.batch == 0
    assert samples == plan.num_rows - sum(plan["padding"].to_pylist())
    assert prompts_of(config, facts_of(config)) == len(set(plan["prompt"].to_pylist())) + 1
