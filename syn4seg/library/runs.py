"""A run on disk, in Python: its samples, records and scores, read when they are asked for. Needs neither Ray nor torch."""

# pyright: reportAttributeAccessIssue=false
# (Arrow makes the functions of pyarrow.compute at run time.)
from __future__ import annotations

import difflib
import html
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from syn4seg.config.loading import load
from syn4seg.errors import DamagedError, UserError
from syn4seg.report.reading import GallerySample, class_names, read_pages, read_records
from syn4seg.stages.plan import read_planned_samples
from syn4seg.stages.results import METRICS, with_bank
from syn4seg.stages.rows import CLASS_NAME, HDIG
from syn4seg.store.files import exists
from syn4seg.store.readback import Results, read_checked
from syn4seg.store.rundir import open_run

if TYPE_CHECKING:
    import os

    import numpy as np
    import pandas

    from syn4seg.config.tree import Config
    from syn4seg.report.picture import Picture

Only = Literal["accepted", "rejected", "all"]
Bank = Literal["hdig", "control", "all"]
BANKS = {"hdig": HDIG, "control": CLASS_NAME}
SCORES = pa.schema(
    [("row", pa.string()), ("metric", pa.string()), ("mean", pa.float64()), ("std", pa.float64()), ("draws", pa.int64())]
)
"""Columns of `LoadedRun.scores`: mean and standard deviation over support draws, in [0, 1]; null where nothing was scored."""


def load_run(path: str | os.PathLike[str]) -> LoadedRun:
    """Return a run, finished or not, without reading its samples.

    Args:
        path: its directory, or s3://BUCKET/RUN.

    Raises:
        UserError: not a run.
    """
    return LoadedRun(str(path))


class LoadedRun:
    """A run. Everything is read from disk when it is asked for, so a run that goes on shows what it has by then.

    Attributes:
        path: directory or URL.
        config: the whole configuration.
    """

    def __init__(self, path: str):
        self._run = open_run(path)
        self.path: str = str(self._run.root)
        self.config: Config = load(self._run.config)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names by class index, which is the value of labels; background first."""
        return class_names(self._run, self.config)

    @property
    def draws(self) -> list[int]:
        """Numbers of the support draws that have labels."""
        return [draw.number for draw in self._run.draws()]

    @property
    def results(self) -> dict[str, Any] | None:
        """results.json, or None as long as the run is not scored."""
        return read_checked(self._run.results, Results) if exists(self._run.results) else None

    @property
    def scores(self) -> pa.Table:
        """The ablation table: columns `SCORES`, a line per row and metric (novel, base, mean, harmonic...).

        Raises:
            UserError: the run has no results yet.
        """
        results = self.results
        if results is None:
            raise UserError(f"{self.path}: has no results yet; let it go on with syn4seg.run(..., out={self.path!r})")
        found = [
            {
                "row": row,
                "metric": metric,
                "mean": values[metric]["mean"],
                "std": values[metric]["std"],
                "draws": values[metric]["n"],
            }
            for row, values in results["rows"].items()
            for metric in METRICS
            if metric in values
        ]
        return pa.Table.from_pylist(found, schema=SCORES)

    def records(self, draw: int = 0, *, only: Only = "all", bank: Bank = "all") -> pa.Table:
        """Return what is known of every finished sample, as an Arrow table: columns `syn4seg.schema.RECORD` and `bank`.

        Args:
            draw: number of the support draw.
            only: "accepted", "rejected" (with its `reason`), or "all", with the faults.
            bank: "hdig" (diverse prompts), "control" (class names alone) or "all".

        Raises:
            UserError: there is no such draw, or a word is none of these.
        """
        known = self.draws
        if draw not in known:
            raise UserError(f"draw is {draw}; expected one of {known}, the draws of {self.path}: label them with `syn4seg refine`")
        for name, value, words in (("only", only, ("accepted", "rejected", "all")), ("bank", bank, (*BANKS, "all"))):
            if value not in words:
                raise UserError(f"{name} is {value!r}; expected one of {', '.join(words)}")
        table = with_bank(read_records(self._run, draw), read_planned_samples(self._run))
        if bank != "all":
            table = table.filter(pc.equal(table["bank"], BANKS[bank]))
        if only == "all":
            return table
        accepted = pc.equal(table["reason"], "")
        faults = pc.starts_with(table["reason"], "fault: ")
        return table.filter(accepted if only == "accepted" else pc.invert(pc.or_(accepted, faults)))

    def to_pandas(self, draw: int = 0, *, only: Only = "all", bank: Bank = "all") -> pandas.DataFrame:
        """Return `records` as a pandas DataFrame.

        Raises:
            UserError: pandas is not installed, or as `records`.
        """
        try:
            import pandas  # noqa: F401 - Arrow imports it itself, but says less where it is missing
        except ImportError:
            raise UserError("pandas is missing: pip install pandas, or use records(), an Arrow table") from None
        return self.records(draw, only=only, bank=bank).to_pandas()

    def samples(self, draw: int = 0, *, only: Only = "accepted", bank: Bank = "hdig") -> Iterator[GallerySample]:
        """Yield samples with their pixels in the order of their ids; some are in memory at a time, never the run.

        A sample has `record` (with `sample_id`, `class`, `prompt`, `reason`, `audit`), `image` uint8 (H, W, 3) RGB and `labels`:
        draft, kept, relabeled and label, each uint8 (H, W), as far as it has them. Where its files cannot be read, `damage` says
        why, and `image` is None.

        Args:
            draw, only, bank: as for `records`; a fault has no pixels.
        """
        table = self.records(draw, only=only, bank=bank)
        return (sample for page in read_pages(self._run, draw, table.drop_columns(["bank"])) for sample in page)

    def __iter__(self) -> Iterator[GallerySample]:
        """Yield the accepted samples of the diverse prompts of draw 0."""
        return self.samples()

    def sample(self, sample_id: str, draw: int = 0) -> GallerySample:
        """Return one sample.

        Raises:
            UserError: there is no such sample or draw.
            DamagedError: its files cannot be read.
        """
        table = self.records(draw)
        row = pc.index(table["sample_id"], sample_id).as_py()
        if row < 0:
            near = ", ".join(difflib.get_close_matches(str(sample_id), table["sample_id"].to_pylist(), n=3, cutoff=0)) or "none yet"
            raise UserError(f"sample_id is {sample_id!r}; expected one of the {len(table)} samples of draw {draw}, e.g. {near}")
        found = next(read_pages(self._run, draw, table.slice(row, 1).drop_columns(["bank"])))[0]
        if found.damage:
            raise DamagedError(f"{sample_id}: {found.damage}")
        return found

    def label(self, sample_id: str, draw: int = 0, *, stage: str = "label") -> np.ndarray:
        """Return one label of a sample: class indices uint8 (H, W), 255 unlabeled.

        Args:
            stage: draft, kept, relabeled or label.

        Raises:
            UserError: there is no such sample, or it has no such label, as a rejected one has no final one.
        """
        labels = self.sample(sample_id, draw).labels
        if stage not in labels:
            raise UserError(f"stage is {stage!r}; {sample_id} has {', '.join(labels) or 'no label: its row failed'}")
        return labels[stage]

    def show(self, sample_id: str, draw: int = 0) -> Picture:
        """Return the picture of a sample, which a notebook shows: image | draft | kept | relabeled | label.

        Raises:
            UserError: there is no such sample or draw.
        """
        from syn4seg.report.picture import show

        return show(self._run, sample_id, draw)

    def __repr__(self) -> str:
        state = "finished" if exists(self._run.results) else "not finished"
        return f"<syn4seg run {self.path}: {state}, draws {self.draws}>"

    def _repr_html_(self) -> str:
        """Return the scores as a notebook shows them, in percent."""
        head = f"<p>{html.escape(repr(self)[1:-1])}</p>"
        if self.results is None:
            return head
        rows: dict[str, dict[str, float | None]] = {}
        for line in self.scores.to_pylist():
            rows.setdefault(line["row"], {})[line["metric"]] = line["mean"]
        columns = ("base", "novel", "mean", "harmonic")
        cells = "".join(
            f"<tr><th>{html.escape(row)}</th>"
            + "".join("<td>-</td>" if values.get(c) is None else f"<td>{100 * (values[c] or 0):.1f}</td>" for c in columns)
            + "</tr>"
            for row, values in rows.items()
        )
        return f"{head}<table><tr><th>mIoU in %</th>{''.join(f'<th>{c}</th>' for c in columns)}</tr>{cells}</table>"
