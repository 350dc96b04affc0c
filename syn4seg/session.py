"""The verbs `run` and `sweep` as functions: the same runs as the command's, resumable by it and it by them. Imports wait inside.

Beside `cli.py` the only module here that reaches up to Ray's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from syn4seg.library.runs import LoadedRun

Place = str | os.PathLike[str]


def run(
    config: Place | None = None, *, out: Place | None = None, reuse: Place | None = None, trust: bool = False, **keys: Any
) -> LoadedRun:
    """Run the whole method, or go on with what is in `out`, and return the finished run.

    Progress is shown as the command shows it, in a notebook too. Ctrl-C, or a notebook's stop button, is a KeyboardInterrupt;
    the same call, or the command, goes on from there.

        syn4seg.run("embedded", out="runs/mine", **{"labeling.beta": 0.3, "data.draws": 5})

    Args:
        config: a YAML file, a run, or the name of a packaged configuration; None: each key's default.
        out: the run directory, s3:// too; None: runs/NAME.
        reuse: an earlier run whose fitting stages are taken over.
        trust: run the code that a stored configuration names (`segmenter.backbone`).
        keys: keys of the configuration with their values.

    Raises:
        UserError: the first thing that is wrong, before anything is written.
        KeyboardInterrupt: it was stopped.
    """
    words = _words(config, keys)
    with _interruptible():
        from actors.command import logged_pipeline
        from syn4seg.library.runs import LoadedRun

        with logged_pipeline(words, _text(out), _text(reuse), trust) as pipeline:
            pipeline.display.results(pipeline.run_all())
            return LoadedRun(pipeline.run.address)


@dataclass(frozen=True)
class FinishedSweep:
    """What a sweep found.

    Attributes:
        path: its folder, with report.html.
        summary: summary.json: best trial, comparison with the defaults, importance of each key.
        best: path of the best trial's configuration, which `run` takes; None if no trial was measured.
    """

    path: str
    summary: dict[str, Any]
    best: str | None

    @property
    def trials(self) -> pa.Table:
        """A row per trial: its keys, scores and state."""
        from pathlib import Path

        from syn4seg.store.tables import read_parquet

        return read_parquet(Path(self.path) / "trials.parquet")


def sweep(
    config: Place | None = None,
    study: Place = "labels",
    *,
    out: Place | None = None,
    trials: int | None = None,
    concurrency: int | None = None,
    objective: str | None = None,
    resume: bool = False,
    reuse: Place | None = None,
    cache: Place = "runs/cache",
    cache_gib: float = 20.0,
    fail_fast: bool = False,
    trust: bool = False,
    **keys: Any,
) -> FinishedSweep:
    """Search keys of the configuration with Ray Tune and Optuna; a trial recomputes only what its keys change.

    Args:
        config: as for `run`; a finished run lends its images.
        study: labels, shots, prompts, beta, lambda, all, or a YAML file.
        out: folder of the sweep; None: runs/NAME-STUDY.
        trials: how many, with those done; None: as the study says.
        concurrency: trials at a time, at most the study's window.
        objective: novel, harmonic, mean...; several with commas: a Pareto front.
        resume: go on with the study in `out`.
        reuse: an earlier run whose fitting stages are taken over.
        cache, cache_gib: folder of the stage cache, and its largest size in GiB.
        fail_fast: stop at the first trial that fails.
        trust: as for `run`.
        keys: keys of the configuration, and of the study itself (`study.window`).

    Raises:
        UserError: the first thing that is wrong.
        KeyboardInterrupt: it was stopped; the same call with `resume=True` goes on.
    """
    words = _words(config, keys)
    changes = [word for word in words if word.startswith("study.")]
    with _interruptible():
        from syn4seg.options import read_config
        from syn4seg.store.files import read_json
        from tune.sweep import search_keys

        folder = search_keys(
            read_config([word for word in words if word not in changes], trusted=trust),
            words=words,
            study=str(study),
            changes=changes,
            trials=trials,
            concurrency=concurrency,
            objective=objective,
            out=_text(out),
            resume=resume,
            reuse=_text(reuse),
            cache=str(cache),
            cache_bytes=int(cache_gib * 2**30),
            fail_fast=fail_fast,
        )
        best = str(folder.best) if folder.best.is_file() else None
        return FinishedSweep(str(folder.root), read_json(folder.summary), best)


def _text(path: Place | None) -> str | None:
    return None if path is None else os.fspath(path)


def _words(config: Place | None, keys: Mapping[str, Any]) -> list[str]:
    """Return the words of a command: a value is written as JSON, which YAML reads.

    Raises:
        UserError: a value has no such form.
    """
    from syn4seg.errors import UserError

    words = [] if config is None else [os.fspath(config)]
    for key, value in keys.items():
        try:
            text = json.dumps(value, default=lambda other: other.item() if hasattr(other, "item") else os.fspath(other))
        except (TypeError, ValueError):
            raise UserError(f"{key} is a {type(value).__name__}; expected a number, text, list or dict, or a path") from None
        words.append(f"{key}={text}")
    return words


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn an interruption of a verb into KeyboardInterrupt, and give the signals back to whom they belonged to."""
    from syn4seg.errors import interruption

    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    except BaseException as error:
        if stop := interruption(error):
            raise KeyboardInterrupt("stopped; the same call goes on from here") from stop
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
