"""The run directory, in a folder or an object store: every path of a run, the plan, the records, the digest.

    RUN/config.yaml inputs.json checked_files.json provenance.json results.json metrics.jsonl
    RUN/prompts.parquet embeddings.safetensors plan.parquet
    RUN/proposals/CLASS.jsonl (of a language model)  generators/HASH.json (how an image model was run)  quarantined/ID.json
    RUN/requests/ID.json (how often a service was asked for an image)
    RUN/model/{model.safetensors,config.json,README.md}, the trained model that the run ends with
    RUN/checkpoints/{base.safetensors,base.json}  images/... (see `layout_files.py`, `layout_sharded.py`)
    RUN/draws/K/support.json support.safetensors queries.json manifest.parquet checkpoints/ROW.safetensors labels/... records/...

Only the driver writes metrics.jsonl; actors write files of their own. How files are written, and what is relied on, is in
`files.py`. Nothing is deleted on start.
"""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from syn4seg.config.fingerprint import UPSTREAM, fingerprint
from syn4seg.config.loading import explained
from syn4seg.config.tree import Config, annotated, differences
from syn4seg.config.yaml_text import decode_text, parse_yaml
from syn4seg.errors import DamagedError, UserError, did_you_mean
from syn4seg.schema import PLAN_FILE
from syn4seg.store.files import (
    append_line,
    as_path,
    check_reachable,
    exists,
    explain_errors,
    map_threads,
    one_line,
    parse_json,
    read_bytes,
    to_json,
)
from syn4seg.store.layout_files import FileSamples
from syn4seg.store.layout_sharded import ShardSamples
from syn4seg.store.listing import list_files, list_names
from syn4seg.store.readback import Facts, Inputs, Provenance, read_checked
from syn4seg.store.samples import Pair, StoredSample, check_names
from syn4seg.store.seals import check_seal, write_sealed, write_sealed_json
from syn4seg.store.tables import read_parquet

if TYPE_CHECKING:
    from syn4seg.store.files import AnyPath


class Draw:
    """Paths and samples of one support draw inside a run."""

    def __init__(self, run: RunDir, number: int):
        self.run, self.number = run, number
        self.root = run.root / "draws" / str(number)
        self.support = self.root / "support.safetensors"
        self.support_json = self.root / "support.json"
        self.drafter = self.root / "drafter.safetensors"
        self.queries = self.root / "queries.json"
        self.manifest = self.root / "manifest.parquet"

    def checkpoint(self, row: str) -> AnyPath:
        """Return the path of the classifier trained for one ablation row."""
        return self.root / "checkpoints" / f"{row}.safetensors"

    def label(self, stage: str, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a label image, in the layout `files`."""
        assert isinstance(self.run.samples, FileSamples), "a sharded run has no file per label"
        return self.run.samples.label(self.number, stage, class_name, sample_id)

    def record(self, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a sample's record, in the layout `files`."""
        assert isinstance(self.run.samples, FileSamples), "a sharded run has no file per record"
        return self.run.samples.record(self.number, class_name, sample_id)

    def write(self, samples: list[StoredSample]) -> None:
        """Keep samples, so that they are finished; see `FileSamples.write`."""
        self.run.samples.write(self.number, samples)

    def read(self, rows: list[dict[str, Any]]) -> list[Pair]:
        """Read finished samples with their labels and images; see `FileSamples.read`."""
        return self.run.samples.read(self.number, rows)

    def read_or_errors(self, rows: list[dict[str, Any]]) -> list[Pair | DamagedError]:
        """Read finished samples, with the error of a damaged one in its place; see `FileSamples.read_or_errors`."""
        return self.run.samples.read_or_errors(self.number, rows)

    def table(self) -> pa.Table:
        """Return every record, once each, sorted by sample id: columns `schema.RECORD`."""
        return self.run.samples.records(self.number)

    def complete(self) -> pa.Table:
        """Return columns sample_id, reason and image (digest) of the samples whose record and files all exist."""
        return self.run.samples.complete(self.number, self.run.quarantined_ids())

    def done(self) -> set[str]:
        """Return the ids of the samples of `complete`."""
        return set(self.complete()["sample_id"].to_pylist())

    def finished(self, ids: Iterable[str]) -> set[str]:
        """Return which of `ids` are done by now. Cheap for a reader that polls: one listing, and only new files are opened."""
        return self.run.samples.finished(self.number, ids, self.run.quarantined_ids())

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every record as plain values, sorted by sample id."""
        for row in self.table().to_pylist():
            yield {k: v for k, v in row.items() if v is not None} | {"audit": parse_json(row["audit"], row["sample_id"])}


class RunDir:
    """One run, in a folder or an object store (`s3://bucket/run`).

    Args:
        layout: of the samples; by default that of the config.yaml in it, or `files`.

    Raises:
        UserError: a URL of an unknown kind, or its package is not installed.
    """

    def __init__(self, root: AnyPath | str, layout: str | None = None):
        self.root, self._layout = as_path(root), layout
        self._draws: dict[int, Draw] = {}
        self.config = self.root / "config.yaml"
        self.provenance = self.root / "provenance.json"
        self.inputs = self.root / "inputs.json"
        self.checked_files = self.root / "checked_files.json"
        self.prompts = self.root / "prompts.parquet"
        self.embeddings = self.root / "embeddings.safetensors"
        self.plan = self.root / "plan.parquet"
        self.base = self.root / "checkpoints" / "base.safetensors"
        self.base_facts = self.root / "checkpoints" / "base.json"
        self.results = self.root / "results.json"
        self.model = self.root / "model"
        self.metrics = self.root / "metrics.jsonl"

    @property
    def address(self) -> str:
        """What an actor makes its own `RunDir` of: an absolute path or a URL."""
        return str(self.root.absolute())

    @cached_property
    def samples(self) -> FileSamples | ShardSamples:
        """The samples, in the layout of the run."""
        stored = self.stored() if self._layout is None else None
        layout = self._layout or (stored.layout if stored else "files")
        return ShardSamples(self.root) if layout == "sharded" else FileSamples(self.root)

    def stored(self) -> Config | None:
        """Return the configuration that the run was begun with, or None.

        Raises:
            DamagedError: config.yaml is damaged, or has keys or values that this version does not know.
        """
        if not exists(self.config):
            return None
        try:
            return Config.model_validate(parse_yaml(decode_text(read_bytes(self.config, 2**20))))
        except ValueError as error:
            reason = explained(error.errors()[0]) if isinstance(error, ValidationError) else one_line(error)
            raise DamagedError(
                f"{self.config}: damaged, or of another version ({reason}); put the old file back, or use another --out"
            ) from None

    def image(self, class_name: str, sample_id: str) -> AnyPath:
        """Return the path of a synthetic image, in the layout `files`."""
        assert isinstance(self.samples, FileSamples), "a sharded run has no file per image"
        return self.samples.image(class_name, sample_id)

    def quarantined(self, sample_id: str) -> AnyPath:
        """Return the path of the note on a sample that could not be made or read."""
        return self.root / "quarantined" / f"{sample_id}.json"

    def requests(self, sample_id: str) -> AnyPath:
        """Return the path of the count of requests to a service for an image."""
        return self.root / "requests" / f"{sample_id}.json"

    def quarantined_ids(self) -> list[str]:
        """Return the ids of the samples with a note in quarantined/."""
        return sorted(name[:-5] for name in list_files(self.root / "quarantined") if name.endswith(".json"))

    def quarantine(self) -> dict[str, dict[str, Any]]:
        """Return the notes of the quarantined samples, by id."""
        names = self.quarantined_ids()
        return dict(zip(names, map_threads(lambda name: read_checked(self.quarantined(name), Facts), names), strict=True))

    def read_plan(self) -> pa.Table:
        """Return the plan as it was written, padding included.

        Raises:
            UserError: there is none yet, it is damaged, or an id in it is not safe as a file name.
        """
        try:
            plan = read_parquet(self.plan, schema=PLAN_FILE)
        except FileNotFoundError:
            raise UserError(
                f"{self.root}: no plan yet; run `syn4seg refine` (or `syn4seg run`) with the same configuration first"
            ) from None
        check_names(plan["sample_id"], f"{self.plan}: sample")
        check_seal(self.plan)
        return plan

    def has_images(self) -> bool:
        """Return whether every planned sample has an image or a note that it could not be made."""
        if not exists(self.plan):
            return False
        finished = pa.chunked_array([*self.samples.images()["sample_id"].chunks, pa.array(self.quarantined_ids(), pa.string())])
        return pc.all(pc.is_in(self.read_plan()["sample_id"], finished.combine_chunks())).as_py() is not False

    def draw(self, number: int) -> Draw:
        """Return one support draw, the same object every time."""
        return self._draws.setdefault(number, Draw(self, number))

    def round(self, number: int) -> RunDir:
        """Return the run of an earlier round of labelling (`labeling.rounds`), in the same layout."""
        return RunDir(self.root / "rounds" / str(number), self._layout)

    def rounds(self) -> list[RunDir]:
        """Return the runs of earlier rounds of labelling that have a folder, in order."""
        names = list_names(self.root / "rounds")
        return [self.round(number) for number in sorted(int(n) for n in names if n.isascii() and n.isdecimal())]

    def draws(self) -> list[Draw]:
        """Return the draws that have a folder, in order."""
        names = list_names(self.root / "draws")
        return [self.draw(number) for number in sorted(int(n) for n in names if n.isascii() and n.isdecimal())]

    def log(self, **values: Any) -> None:
        """Add one line to metrics.jsonl, with its time (Unix seconds); for the driver alone, since no file has two writers."""
        append_line(self.metrics, json.dumps(to_json({"time": round(time.time(), 3), **values}), sort_keys=True))

    def note_generator(self, facts: dict[str, Any]) -> None:
        """Keep how an image model was run, in a file named by the facts: every actor with the same facts writes the same."""
        name = hashlib.blake2b(json.dumps(to_json(facts), sort_keys=True).encode(), digest_size=8).hexdigest()
        write_sealed_json(self.root / "generators" / f"{name}.json", facts)

    def check(self, config: Config) -> None:
        """Check that what is in the directory, if anything, belongs to the same science; write nothing.

        The section `evaluation` may differ: scores are the last stage, and results.json says how they were made.

        Raises:
            UserError: another science config made this directory (the differences are listed), it has another layout, it is
                not a run, or its object store cannot be reached.
        """
        check_reachable(self.root)
        stored = self.stored()
        if stored is not None:
            if stored.layout != config.layout:
                raise UserError(
                    f"layout={config.layout}: --out {self.root} was begun with layout={stored.layout}; keep that, "
                    f"or use another --out (and `--reuse {self.root}` to take its images over)"
                )
            changed = [d for d in differences(stored.science(), config.science()) if not d.startswith("evaluation.")]
            if changed:
                lines = "\n  ".join(changed)
                raise UserError(
                    f"--out {self.root}: made with another configuration:\n  {lines}\n"
                    f"use another --out (and `--reuse {self.root}` to keep the stages that still fit)"
                )
        elif _has_files(self.root):
            raise UserError(f"--out {self.root}: not empty and not a run (no config.yaml); choose another folder")

    def open(self, config: Config) -> None:
        """Check the directory (see `check`), then create it and its config.yaml."""
        self.check(config)
        write_sealed(self.config, annotated(config).encode())
        self._layout = config.layout

    def check_inputs(self, inputs: dict[str, str]) -> None:
        """Refuse other files under the names that the configuration gives.

        Args:
            inputs: `setup.digest_inputs(config)`.

        Raises:
            UserError: a file is not the one that the run was begun with.
        """
        if not exists(self.inputs):
            return
        for key, digest in read_checked(self.inputs, Inputs).items():
            if inputs.get(key, digest) != digest:
                raise UserError(
                    f"{key}: other files are there than when {self.root} was begun; put the old ones back, or use another --out"
                )

    def write_inputs(self, inputs: dict[str, str]) -> None:
        """Keep the digests of the run's inputs, those known already and new ones."""
        stored = read_checked(self.inputs, Inputs) if exists(self.inputs) else {}
        write_sealed_json(self.inputs, inputs | stored)

    def write_provenance(self, config: Config, versions: dict[str, str]) -> None:
        """Write what made the run: versions at its first start and the fingerprint of each stage; no user name, path or secret."""
        if exists(self.provenance):
            versions = read_checked(self.provenance, Provenance)["versions"]
        stages = {stage: fingerprint(config, stage) for stage in UPSTREAM}
        write_sealed_json(self.provenance, {"versions": versions, "fingerprints": stages})


def open_run(place: str) -> RunDir:
    """Open the run at a path or URL.

    Raises:
        UserError: there is none, or it cannot be reached.
    """
    run = RunDir(place)
    check_reachable(run.root)
    if not exists(run.config):
        near = did_you_mean(run.root.name, _runs_beside(run.root)) if isinstance(run.root, Path) else ""
        raise UserError(
            f"{place}: not a run (no config.yaml); give the directory that `syn4seg run --out` wrote, `syn4seg ls` lists them{near}"
        )
    refuse_sweep(run)
    return run


def _runs_beside(root: Path) -> list[str]:
    """Return the names of the runs in the folder of a path."""
    with contextlib.suppress(OSError):
        return [path.parent.name for path in root.absolute().parent.glob("*/config.yaml")]
    return []


def refuse_sweep(run: RunDir) -> None:
    """Refuse the directory of a sweep where a run is expected.

    Raises:
        UserError: it is one.
    """
    if exists(run.root / "study.json"):
        raise UserError(
            f"{run.root}: a sweep, not a run; its page is {run.root}/report.html, and {run.root}/run is the run that its trials "
            "start from"
        )


def _has_files(root: AnyPath) -> bool:
    with explain_errors(root, "read"), contextlib.suppress(FileNotFoundError):
        return root.is_dir() and any(True for _ in root.iterdir())
    return False


def run_digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a digest (64 hex digits) over (sample id, image digest, label digest or reason) rows, sorted."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return table_digest(*(pa.chunked_array([pa.array(column, pa.string())]) for column in columns))


def table_digest(ids: pa.ChunkedArray, images: pa.ChunkedArray, labels: pa.ChunkedArray) -> str:
    """Return the `run_digest` of columns, without a Python object per row."""
    table = pa.table({"a": ids, "b": images, "c": labels})
    order = pc.sort_indices(table, [(name, "ascending") for name in "abc"])
    total = hashlib.blake2b(digest_size=32)
    for start in range(0, len(order), 65_536):
        part = table.take(order[start : start + 65_536])
        joined = pc.binary_join_element_wise(part["a"], part["b"], part["c"], "\x1f")
        total.update("".join(f"{row}\x1e" for row in joined.to_pylist()).encode())
    return total.hexdigest()
