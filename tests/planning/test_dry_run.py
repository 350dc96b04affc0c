"""`syn4seg run --dry-run`: what is there and what another run would give is counted, the rest has a price, nothing is written."""

from __future__ import annotations

import shutil


def counted(said: str) -> dict[str, list[str]]:
    """Stage -> planned, unit, there, to make."""
    return {words[0]: words[1:5] for line in said.splitlines() if len(words := line.split()) > 4 and words[1].isdigit()}


def test_a_dry_run_says_what_is_left_and_writes_nothing(finished, small, tmp_path, syn4seg, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, keys = finished[0], [*small, "data.draws=2"]
    code, said, complaint = syn4seg("run", *keys, "--dry-run")
    assert code == 0 and "runs/embedded: a new run" in said and "cost: about" in said, complaint
    assert counted(said)["synthesis"] == ["25", "images", "0", "25"]
    _, said, _ = syn4seg("run", *keys, "--out", out, "--dry-run")
    assert "the run is finished" in said and {row[3] for row in counted(said).values()} == {"0"}
    code, said, _ = syn4seg("run", *keys, "refinement.band_width=1", "--reuse", out, "--out", "new", "--dry-run")
    assert f"taken from {out}: prompts, images, base" in " ".join(said.split())
    assert counted(said)["synthesis"][2:] == ["25", "0"] and counted(said)["refinement"] == ["48", "images", "0", "48"]
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_that_was_stopped_the_rest_is_counted_and_another_configuration_is_refused(finished, small, tmp_path, syn4seg):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    for path in (out / "results.json", *sorted((out / "draws" / "1" / "records").glob("*/*.json"))[:5]):
        path.unlink()
    _, said, _ = syn4seg("run", *small, "data.draws=2", "--out", out, "--dry-run")
    assert counted(said)["labeling"] == ["48", "images", "43", "5"] and counted(said)["evaluation"][2] == "0"
    code, _, complaint = syn4seg("run", *small, "data.draws=2", "novel.steps=5", "--out", out, "--dry-run")
    assert code == 2 and "novel.steps: 4 -> 5" in complaint
