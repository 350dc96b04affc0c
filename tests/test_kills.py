"""Verbs that are killed at any step and given again: the bytes of an undisturbed one, nothing half-written, nothing left over."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from syn4seg.config.loading import load
from tests.kills import Jobs
from tests.official import write_coco, write_pascal
from tests.shared_exports import contents
from tests.shared_study import record, study_of
from tune.records import SweepDir, write_best, write_results
from tune.validation import open_sweep

DELAYS = (0.0, 0.0, 0.0005, 0.003)
"""Seconds from a step to the kill: before it, or in the middle of what follows."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.close()


def moments(steps: int, seed: int, count: int = 2) -> list[int]:
    """Steps at which a verb is killed: the second and the last one, where folders begin and end, and some between."""
    return sorted({1, steps - 1} | set(random.Random(seed).sample(range(2, steps - 1), min(count, steps - 3))))


def finished_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files that somebody may take for whole: those whose name has no dot before it."""
    return {name: data for name, data in files.items() if not any(part.startswith(".") for part in name.split("/"))}


def killed_and_given_again(
    jobs: Jobs, words: list[Any], folder: Path, steps: int, whole: dict[str, bytes], seed: int, begun: dict[str, bytes]
) -> None:
    """Kill a command once or twice in the same folder at seeded steps, then let it end.

    Args:
        words: the command.
        folder: where it writes; made anew out of `begun`.
        steps: of the undisturbed command.
        whole: files that the undisturbed command leaves.
        begun: files that were there before.
    """
    rng, meanwhile = random.Random(seed), ("unfinished.json", "begun.json")
    for step in moments(steps, seed):
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in begun.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for number in range(1 + step % 2):
            ended = jobs.run(words, folder, step if number == 0 else rng.randrange(step + 1), rng.choice(DELAYS))
            assert ended.code == -9 or (number and ended.code == 0), (step, ended)
            for name, data in finished_files(contents(folder)).items():
                assert name.rpartition("/")[2] in meanwhile or data in (whole.get(name), begun.get(name)), (
                    f"step {step}: {name} is there, and not whole"
                )
        ended = jobs.run(words, folder)
        assert ended.code == 0, (step, ended)
        found, expected = contents(folder), begun | whole
        assert sorted(found) == sorted(expected), f"step {step}"
        assert found == expected, f"step {step}"


def undisturbed(jobs: Jobs, words: list[Any], folder: Path) -> tuple[int, dict[str, bytes]]:
    """Return the number of steps of a command, and what lies in its folder afterwards."""
    ended = jobs.run(words, folder)
    assert ended.code == 0 and ended.steps > 4, ended
    return ended.steps, contents(folder)


@pytest.mark.parametrize("format", ["voc", "webdataset"])
def test_an_export_killed_at_any_step_is_made_whole_by_the_same_command(jobs, finished, tmp_path, format):
    run, to = finished[0], tmp_path / "out"
    words = ["export", run, "--format", format, "--to", to, "--only", "all"]
    steps, whole = undisturbed(jobs, words, to)
    assert "export.json" in whole and "unfinished.json" not in whole
    killed_and_given_again(jobs, words, to, steps, whole, 1, {})


@pytest.mark.parametrize("write", [write_pascal, write_coco], ids=["pascal", "coco"])
def test_preparing_that_is_killed_at_any_step_goes_on_to_the_same_bytes(jobs, tmp_path, write):
    root, source = tmp_path / "data", write.__name__.removeprefix("write_")
    write(root, train=6, val=6)
    official, words = contents(root), ["prepare", source, root]
    steps, whole = undisturbed(jobs, words, root)
    assert {name: whole[name] for name in official} == official
    killed_and_given_again(jobs, words, root, steps, whole, 2, official)


@pytest.mark.parametrize("verb", ["report", "compare"])
def test_a_page_that_is_killed_at_any_step_is_there_whole_or_not_at_all(jobs, finished, tmp_path, verb):
    run, pages = finished[0], tmp_path / "pages"
    words = [verb, run, *([run] if verb == "compare" else []), "--to", pages / "page.html"]
    steps, whole = undisturbed(jobs, words, pages)
    assert list(whole) == ["page.html"]
    begun = {"page.html": b"an old page", "notes.txt": b"mine"} if verb == "report" else {}
    killed_and_given_again(jobs, words, pages, steps, whole, 3, begun)


# ---------------------------------------------------------------------------------------------------- sweeps
def sweep_files(place: str) -> None:
    """Make the directory of a sweep as the verb does, or go on with it; trials take no time and need no Ray.

    Its path is relative, as it is by default.
    """
    os.chdir(Path(place).parent)
    study, config, sweep = study_of(), load(None, []), SweepDir(Path(Path(place).name))
    open_sweep(sweep, study, config, resume=sweep.study.exists())
    for number in range(3):
        if number not in sweep.records():
            params = {"labeling.beta": number / 4, "refinement.band_width": number}
            sweep.write(record(number, params, 0.5 + number / 10, reports=(0.4, 0.5)))
    write_best(sweep, config, write_results(sweep, study), study.set)


def told(sweep: SweepDir) -> dict[str, Any]:
    """Return what a sweep has to tell. The times in Optuna's journal and TensorBoard's event files, and the names of
    the latter, are those of their writing; what else they hold is compared by value or by size."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    files = contents(sweep.root)
    files = {name: data for name, data in files.items() if name != "study.journal" and not name.startswith("tensorboard/")}
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(sweep.journal)))
    trials = [
        (t.number, t.state, t.params, t.values, t.intermediate_values, t.user_attrs)
        for t in optuna.load_study(study_name="syn4seg", storage=storage).trials
    ]
    return {"files": files, "events": sizes(sweep.tensorboard, sweep.root), "trials": trials}


def sizes(folder: Path, root: Path) -> dict[str, int]:
    """Return the bytes of the one file in each folder below `folder`, by the folder's path below `root`."""
    return {path.parent.relative_to(root).as_posix(): path.stat().st_size for path in sorted(folder.rglob("events*"))}


def test_the_files_of_a_sweep_that_is_killed_at_any_step_are_those_of_an_undisturbed_one(jobs, tmp_path):
    whole, sweep, rng = SweepDir(tmp_path / "whole"), SweepDir(tmp_path / "sweep"), random.Random(6)
    ended = jobs.run(["tests.test_kills:sweep_files", whole.root], whole.root)
    assert ended.code == 0, ended
    wanted, words = told(whole), ["tests.test_kills:sweep_files", sweep.root]
    for step in range(4, ended.steps, 12):  # among them: before study.json, in an event file, while Optuna's lock is held
        shutil.rmtree(sweep.root, ignore_errors=True)
        for number in range(1 + step // 12 % 2):
            killed = jobs.run(words, sweep.root, step if number == 0 else rng.randrange(step + 1))
            assert killed.code == -9 or (number and killed.code == 0), (step, killed)
            for path in sweep.tensorboard.glob("*"):
                assert sizes(path, sweep.root) == sizes(whole.tensorboard / path.name, whole.root), f"step {step}: {path.name}"
        again = jobs.run(words, sweep.root)
        assert again.code == 0, (step, again)
        assert told(sweep) == wanted, step


STUDY = """
space: {labeling.beta: {low: 0.0, high: 1.0}}
trials: 3
startup: 2
pruning: median
reports: 2
objective: [test.novel]
"""
"""The third trial is chosen and may be stopped by what the first two told, also where they did so before a kill."""


@pytest.mark.slow
def test_a_sweep_whose_processes_are_killed_at_any_step_ends_with_the_same_trials_and_tables(jobs, finished, tmp_path):
    """Seconds differ, so trials.parquet and the page, which tell them, are compared without them or not at all."""
    (tmp_path / "study.yaml").write_text(STUDY)

    def command(folder: Path) -> list[Any]:
        place = ["--out", folder / "sweep", "--cache", folder / "cache"]
        again = ["--resume"] if (folder / "sweep" / "study.json").exists() else []
        return ["sweep", finished[0], "--study", tmp_path / "study.yaml", "--concurrency", 1, *place, *again]

    ended = jobs.run(command(tmp_path / "whole"), tmp_path / "whole" / "sweep")
    assert ended.code == 0, ended
    folder, rng = tmp_path / "killed", random.Random(7)
    for share in (0.15, 0.5):  # between trials, while the tables are written; the test above begins before study.json
        killed = jobs.run(command(folder), folder / "sweep", int(ended.steps * share) + rng.randrange(3), rng.choice(DELAYS))
        assert killed.code == -9, killed
    again = jobs.run(command(folder), folder / "sweep")
    assert again.code == 0, again

    def outcome(place: Path) -> dict[str, Any]:
        sweep, names = SweepDir(place / "sweep"), {path.relative_to(place).as_posix() for path in place.rglob("*")}
        table = pq.read_table(sweep.table).drop_columns(["seconds", "made"]).to_pydict()
        records = {n: {key: r[key] for key in ("params", "state", "draws", "reports")} for n, r in sweep.records().items()}
        files = {path.name: path.read_bytes() for path in (sweep.config, sweep.study, sweep.summary, sweep.best)}
        other = {name for name in names if "/tensorboard/" not in name and "/locks/" not in name}
        return {"table": table, "records": records, "files": files, "names": other, "events": sizes(sweep.tensorboard, sweep.root)}

    found, wanted = outcome(folder), outcome(tmp_path / "whole")
    assert len(found["records"]) == 3 and json.loads(found["files"]["summary.json"])["complete"] >= 2
    assert found == wanted
