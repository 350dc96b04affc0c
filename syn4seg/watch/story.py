"""What the lines of a run's metrics.jsonl tell: which phase it is in, how far each piece of work is, how busy the stages are.

Kinds of lines: `begin` and the end of a phase (`seconds`), `pulse` (done and total of a piece of work, see `syn4seg.store.pulse`),
`load` (how busy each stage is, see `actors.metrics`), prompt banks, epochs of the base stage. A line of another kind or with other
values tells nothing and harms nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOWS = 6
"""Lines back to which rates are looked at: about a minute."""
STAGES = ("synthesis", "labeling", "refinement", "writing")
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
"""What the phases of `actors.pipeline` are to people."""

Mark = tuple[float, float]
"""A time, and what was done by then."""


@dataclass
class Work:
    """A piece of work that is counted: images, labels of a draw, training.

    Attributes:
        done, total: how much; a total of 0 is not known.
        marks: by when how much was done, the last few, of this start of the command.
        reasons: how many samples ended with which reason ("" is accepted).
        note: what else there is to say, e.g. the loss.
        ours: whether the command that was started last has said something of it.
    """

    title: str
    done: float = 0
    total: float = 0
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=WINDOWS + 1))
    reasons: dict[str, int] = field(default_factory=dict)
    note: str = ""
    ours: bool = True

    @property
    def open(self) -> bool:
        """Whether something is left to do."""
        return self.done < self.total

    def rate(self) -> float | None:
        """Per second: between the last two marks, or, of finished work, all that there are."""
        marks = list(self.marks)[-2:] if self.open else list(self.marks)[:1] + list(self.marks)[-1:]
        return pace(marks, marks[-1][0]) if marks else None

    def left(self, now: float) -> float | None:
        """Seconds, by the slowest of the recent windows; None if that is not known."""
        slowest = pace(self.marks, now)
        return (self.total - self.done) / slowest if slowest and self.open else None


@dataclass(frozen=True)
class Load:
    """How busy a stage of the stream is, see `actors.metrics.operator_loads`; `total` rows are to pass through it."""

    name: str
    rows: float
    total: float
    rate: float
    busy: float
    queued: float
    rejected: float
    quarantined: float
    deaths: float
    actors: float
    left: float | None


def pace(marks: Sequence[Mark], now: float) -> float | None:
    """The slowest rate of the windows that begin at one of the marks and end now, of those in which something was done."""
    end = marks[-1][1] if marks else 0
    return min(((end - done) / (now - at) for at, done in marks if done < end and now > at), default=None)


class Story:
    """What the lines of a metrics.jsonl tell, line after line. Lines of unknown kinds, or with other values, tell nothing."""

    def __init__(self) -> None:
        self.phase, self.ended = "", ""
        self.begun: float | None = None
        self.last: float | None = None
        self.spent = 0.0
        self.works: dict[tuple[str, Any], Work] = {}
        self.loads: deque[dict[str, Any]] = deque(maxlen=WINDOWS + 1)

    def tell(self, lines: Iterable[dict[str, Any]]) -> None:
        """Goes on with more lines."""
        for line in lines:
            self.last = number(line.get("time"), self.last)
            kind, stage = line.get("kind"), line.get("stage") if isinstance(line.get("stage"), str) else ""
            if kind == "begin":
                self._begin(line)
            elif kind == "load":
                self._load(line)
            elif kind == "pulse" and stage in ("stream", "training", "evaluation"):
                self._pulse(line, stage)
            elif stage == "prompts" and "class_name" in line:
                work = self._work("prompts", None, "prompt banks")
                work.done, work.note = work.done + 1, f"{line['class_name']}: {line.get('accepted')} prompts"
            elif stage == "base" and "epoch" in line:
                self._move(self._work("base", None, "base stage"), line.get("epoch"), line.get("epochs"))
                self.works["base", None].note = _loss(line)
            elif "seconds" in line and stage in PHASES:
                self.phase, self.ended = "", stage
                self.spent += number(line["seconds"]) or 0.0

    def _begin(self, line: dict[str, Any]) -> None:
        started = number(line.get("started"))
        if started != self.begun:  # the command was started again: what it does has its own times
            self.begun, self.spent = started, 0.0
            self.loads.clear()
            self.works = {key: work for key, work in self.works.items() if key[0] == "stream"}
            for work in self.works.values():
                work.ours = False
                work.marks.clear()
        self.phase = str(line.get("stage"))

    def _work(self, name: str, draw: Any, title: str) -> Work:
        return self.works.setdefault((name, draw), Work(title))

    def _move(self, work: Work, done: Any, total: Any) -> None:
        before, work.done, work.total = work.done, number(done) or 0, number(total) or 0
        if work.done < before or not work.ours:
            work.marks.clear()
        work.ours = True
        if self.last is not None:
            work.marks.append((self.last, work.done))

    def _pulse(self, line: dict[str, Any], stage: str) -> None:
        draw = line.get("draw") if stage == "stream" and isinstance(line.get("draw"), int) else None
        title = stage if stage != "stream" else "images" if draw is None else f"labels of draw {draw}"
        work = self._work(stage, draw, title)
        self._move(work, line.get("done"), line.get("total"))
        if isinstance(line.get("reasons"), dict):
            work.reasons = {reason: int(number(count) or 0) for reason, count in line["reasons"].items()}
        if stage == "training":
            work.note = f"draw {line.get('draw')}, {_loss(line)}"

    def _load(self, line: dict[str, Any]) -> None:
        if tells_load(line):
            if self.loads and another_stream(self.loads[-1], line):
                self.loads.clear()
            self.loads.append(line)

    # ------------------------------------------------------------------------------------------------- in words
    def said(self) -> str:
        """The phase that is open, in words; empty if none is."""
        going = [work.title for work in self.works.values() if work.ours and work.open]
        return " and ".join(going) if going and self.phase else PHASES.get(self.phase, self.phase)

    def stages(self) -> tuple[Load, ...]:
        """The last line about the stream, with what is left of each stage; empty once the stream has ended."""
        streams = [work.open for (name, _), work in self.works.items() if name == "stream" and work.ours]
        if not self.loads or (streams and not any(streams)):
            return ()
        last = self.loads[-1]["stages"]
        names = [name for name in STAGES if name in last] + sorted(set(last) - set(STAGES))
        first = last[names[0]] if names else {}
        total = (number(first.get("rows")) or 0) + (number(first.get("queued")) or 0)
        return tuple(self._stage(name, last[name], total) for name in names)

    def _stage(self, name: str, values: dict[str, Any], total: float) -> Load:
        def of(key: str) -> float:
            return number(values.get(key)) or 0.0

        marks = [(_seconds(line), number(line["stages"].get(name, {}).get("rows")) or 0.0) for line in self.loads]
        slowest, rest = pace(marks, marks[-1][0]), total - of("rows")
        return Load(
            name,
            of("rows"),
            total,
            of("rows_per_second"),
            of("busy_share"),
            of("queued"),
            of("rejected"),
            of("quarantined"),
            of("deaths"),
            of("actors"),
            rest / slowest if slowest and rest > 0 else None,
        )

    def funnel(self) -> dict[int | None, dict[str, int]]:
        """Reasons by draw."""
        return {draw: work.reasons for (name, draw), work in self.works.items() if name == "stream" and work.reasons}


def tells_load(line: dict[str, Any]) -> bool:
    """Whether a line of kind `load` has values by stage, as all that are sound do."""
    return isinstance(line.get("stages"), dict) and all(isinstance(v, dict) for v in line["stages"].values())


def another_stream(before: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a line of kind `load` is of another stream than the one before it: each draw, and each start, counts from zero."""
    return line.get("draw") != before.get("draw") or _seconds(line) < _seconds(before)


def number(value: Any, otherwise: float | None = None) -> float | None:
    """A finite number of a sane size, or something else."""
    sane = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if sane else otherwise


def _seconds(line: dict[str, Any]) -> float:
    return number(line.get("seconds")) or 0.0


def _loss(line: dict[str, Any]) -> str:
    loss = number(line.get("loss"))
    return "loss -" if loss is None else f"loss {loss:.4g}"
