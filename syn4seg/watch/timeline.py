"""The course of a run, from the lines of its metrics.jsonl: the phase, the progress of each work item, the load of each stage.

Kinds of lines: `begin` and the end of a phase (`seconds`), `pulse` (done and total of a work item, see `syn4seg.store.pulse`),
`load` (how busy each stage of the stream is, see `actors.metrics`), prompt banks, epochs of the base stage. Lines of other kinds
and values of other types are ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOWS = 6
"""Number of recent lines from which rates are computed: about a minute."""
STAGES = ("synthesis", "labeling", "refinement", "writing")
LOAD_KEYS = ("rows", "rows_per_second", "busy_share", "queued", "rejected", "quarantined", "actors")
"""Values of a stage in a `load` line, in the order of the fields of `StageLoad`."""
PHASES = {
    "prompts": "prompts",
    "base": "base stage",
    "register": "support sets",
    "synthesize": "images",
    "labels": "labels",
    "labels and novel": "labels and training",
    "novel": "training",
    "evaluate": "evaluation",
}
"""Title of each phase of `actors.pipeline`."""


@dataclass
class WorkItem:
    """A countable piece of work: images, labels of a draw, training.

    Attributes:
        done, total: units of work; a total of 0 is unknown.
        marks: the last few pairs (time in seconds, units done by then) since the command was started.
        reasons: number of samples by reason ("" is accepted).
        note: further text, e.g. the loss.
        current: whether the command that was started last has reported it.
    """

    title: str
    done: float = 0
    total: float = 0
    marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOWS + 1))
    reasons: dict[str, int] = field(default_factory=dict)
    note: str = ""
    current: bool = True

    @property
    def unfinished(self) -> bool:
        """Whether some of the work remains."""
        return self.done < self.total

    def rate(self) -> float | None:
        """Return units per second: between the last two marks, or, of finished work, between the first and the last one."""
        marks = list(self.marks)[-2:] if self.unfinished else list(self.marks)[:1] + list(self.marks)[-1:]
        return slowest_rate(marks, marks[-1][0]) if marks else None

    def seconds_left(self, now: float) -> float | None:
        """Return the remaining seconds at the slowest recent rate; None if that is unknown."""
        slowest = slowest_rate(self.marks, now)
        return (self.total - self.done) / slowest if slowest and self.unfinished else None


@dataclass(frozen=True)
class StageLoad:
    """How busy one stage of the stream is, see `actors.metrics.operator_loads`; `total` rows will pass through it."""

    name: str
    total: float
    rows: float
    rate: float
    busy: float
    queued: float
    rejected: float
    quarantined: float
    actors: float
    seconds_left: float | None


def slowest_rate(marks: Sequence[tuple[float, float]], now: float) -> float | None:
    """Return the slowest rate of the windows from one of the marks until `now` in which something was done; None without any."""
    end = marks[-1][1] if marks else 0
    return min(((end - done) / (now - moment) for moment, done in marks if done < end and now > moment), default=None)


class Timeline:
    """The course of a run, built from the lines of its metrics.jsonl in their order.

    Attributes:
        phase, ended: the open phase, and the one that ended last (keys of `PHASES`, or "").
        started, last_time: Unix seconds of the last start of the command, and of the last line.
        seconds_spent: duration of the phases that have ended since the last start.
        items: work items by stage and draw.
        load_lines: the last `load` lines of the running stream.
    """

    def __init__(self) -> None:
        self.phase, self.ended, self.seconds_spent = "", "", 0.0
        self.started: float | None = None
        self.last_time: float | None = None
        self.items: dict[tuple[str, Any], WorkItem] = {}
        self.load_lines: deque[dict[str, Any]] = deque(maxlen=WINDOWS + 1)

    def add_lines(self, lines: Iterable[dict[str, Any]]) -> None:
        """Update the timeline with further lines."""
        for line in lines:
            self.last_time = finite_number(line.get("time"), self.last_time)
            kind, stage = line.get("kind"), line.get("stage") if isinstance(line.get("stage"), str) else ""
            if kind == "begin":
                self._begin_phase(line)
            elif kind == "load":
                if is_load_line(line):
                    if self.load_lines and starts_new_stream(self.load_lines[-1], line):
                        self.load_lines.clear()
                    self.load_lines.append(line)
            elif kind == "pulse" and stage in ("stream", "training", "evaluation"):
                self._add_pulse(line, stage)
            elif stage == "prompts" and "class_name" in line:
                item = self.items.setdefault(("prompts", None), WorkItem("prompt banks"))
                item.done, item.note = item.done + 1, f"{line['class_name']}: {line.get('accepted')} prompts"
            elif stage == "base" and "epoch" in line:
                item = self.items.setdefault(("base", None), WorkItem("base stage"))
                self._update_progress(item, line.get("epoch"), line.get("epochs"))
                item.note = _format_loss(line)
            elif "seconds" in line and stage in PHASES:
                self.phase, self.ended = "", stage
                self.seconds_spent += finite_number(line["seconds"]) or 0.0

    def _begin_phase(self, line: dict[str, Any]) -> None:
        started = finite_number(line.get("started"))
        if started != self.started:  # the command was started again: its work items have times of their own
            self.started, self.seconds_spent = started, 0.0
            self.load_lines.clear()
            self.items = {key: item for key, item in self.items.items() if key[0] == "stream"}
            for item in self.items.values():
                item.current = False
                item.marks.clear()
        self.phase = str(line.get("stage"))

    def _update_progress(self, item: WorkItem, done: Any, total: Any) -> None:
        before, item.done, item.total = item.done, finite_number(done) or 0, finite_number(total) or 0
        if item.done < before or not item.current:
            item.marks.clear()
        item.current = True
        if self.last_time is not None:
            item.marks.append((self.last_time, item.done))

    def _add_pulse(self, line: dict[str, Any], stage: str) -> None:
        draw = line.get("draw") if stage == "stream" and isinstance(line.get("draw"), int) else None
        title = stage if stage != "stream" else "images" if draw is None else f"labels of draw {draw}"
        item = self.items.setdefault((stage, draw), WorkItem(title))
        self._update_progress(item, line.get("done"), line.get("total"))
        if isinstance(line.get("reasons"), dict):
            item.reasons = {reason: int(finite_number(count) or 0) for reason, count in line["reasons"].items()}
        if stage == "training":
            item.note = f"draw {line.get('draw')}, {_format_loss(line)}"

    def phase_title(self) -> str:
        """Return the titles of the unfinished work items, else of the open phase; "" if none is open."""
        titles = [item.title for item in self.items.values() if item.current and item.unfinished]
        return " and ".join(titles) if titles and self.phase else PHASES.get(self.phase, self.phase)

    def stage_loads(self) -> tuple[StageLoad, ...]:
        """Return the load of each stage of the running stream, in the order of the stages; empty once the stream has ended."""
        streams = [item.unfinished for (name, _), item in self.items.items() if name == "stream" and item.current]
        if not self.load_lines or (streams and not any(streams)):
            return ()
        stages = self.load_lines[-1]["stages"]
        names = [name for name in STAGES if name in stages] + sorted(set(stages) - set(STAGES))
        first = stages[names[0]] if names else {}
        total = (finite_number(first.get("rows")) or 0) + (finite_number(first.get("queued")) or 0)
        return tuple(self._stage_load(name, stages[name], total) for name in names)

    def _stage_load(self, name: str, values: dict[str, Any], total: float) -> StageLoad:
        rows, *others = (finite_number(values.get(key)) or 0.0 for key in LOAD_KEYS)
        marks = [(_seconds(line), finite_number(line["stages"].get(name, {}).get("rows")) or 0.0) for line in self.load_lines]
        slowest, rest = slowest_rate(marks, marks[-1][0]), total - rows
        return StageLoad(name, total, rows, *others, seconds_left=rest / slowest if slowest and rest > 0 else None)

    def funnel(self) -> dict[int | None, dict[str, int]]:
        """Return the number of samples by reason, for each draw (None: images without a draw)."""
        return {draw: item.reasons for (name, draw), item in self.items.items() if name == "stream" and item.reasons}


def is_load_line(line: dict[str, Any]) -> bool:
    """Return whether a line of kind `load` is well-formed: it has a dict of values for each stage."""
    return isinstance(line.get("stages"), dict) and all(isinstance(v, dict) for v in line["stages"].values())


def starts_new_stream(before: dict[str, Any], line: dict[str, Any]) -> bool:
    """Return whether a `load` line belongs to a later stream than `before`: each draw, and each start, counts from zero."""
    return line.get("draw") != before.get("draw") or _seconds(line) < _seconds(before)


def finite_number(value: Any, default: float | None = None) -> float | None:
    """Return a value that is a number below 1e15 in size (neither NaN nor a boolean), else the default."""
    sane = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if sane else default


def _seconds(line: dict[str, Any]) -> float:
    return finite_number(line.get("seconds")) or 0.0


def _format_loss(line: dict[str, Any]) -> str:
    loss = finite_number(line.get("loss"))
    return "loss -" if loss is None else f"loss {loss:.4g}"
