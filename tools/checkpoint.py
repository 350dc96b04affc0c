"""What every trainer here shares: resumable checkpoints, a JSON-lines log, a clock of the time really spent, the card."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch


class Journal:
    """Checkpoint, log and clock of one training, all under `folder`.

    A checkpoint is a plain `torch.save` of tensors and numbers (loaded with `weights_only=True`), written to a partial
    file and renamed, so a killed training loses at most `every` seconds.
    """

    def __init__(self, folder: Path, every: float = 120.0):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.log_path, self.every = folder / "checkpoint.pt", folder / "log.jsonl", every
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self._mark = (time.time(), time.process_time())
        self._saved = time.time()

    def load(self) -> dict | None:
        """Return the last saved state, or None on a fresh start."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, weights_only=True)
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        return state

    def _tick(self) -> None:
        now = (time.time(), time.process_time())
        self.seconds += now[0] - self._mark[0]
        self.cpu_seconds += now[1] - self._mark[1]
        self._mark = now

    def log(self, **values: float) -> None:
        """Append one line and prints it."""
        self._tick()
        line = json.dumps({**values, "seconds": round(self.seconds), "cpu_seconds": round(self.cpu_seconds)})
        with self.log_path.open("a") as f:
            f.write(line + "\n")
        print(line, flush=True)

    def save(self, state: dict, force: bool = False) -> None:
        """Write `state` if the last checkpoint is older than `every` seconds (or `force`)."""
        if not force and time.time() - self._saved < self.every:
            return
        self._tick()
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}, partial)
        os.replace(partial, self.path)
        self._saved = time.time()


def write_card(folder: Path, title: str, facts: dict[str, object]) -> None:
    """Return `card.json` for programs and `README.md` for people, beside the weights."""
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    (folder / "README.md").write_text(f"# {title}\n\n| what | value |\n| --- | --- |\n{rows}\n")
