"""`report` and `compare` at the command line: one message for what cannot be read or written, and no half page."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys


def command(*words, **options):
    line = [sys.executable, "-m", "syn4seg.cli", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, **options)


def test_what_cannot_be_written_or_read_is_one_message(run, tmp_path):
    (tmp_path / "file").write_text("")
    shutil.rmtree(run.root / "draws/1")
    for words in (
        ("report", tmp_path),
        ("report", run.root, "--to", tmp_path / "file" / "x.html"),
        ("report", run.root, "--draw", "9"),
        ("compare", run.root, "--to", tmp_path / "c.html"),
        ("compare", run.root, run.root, "--draw", "9", "--to", tmp_path / "c.html"),
    ):
        done = command(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, words


def test_the_page_of_a_sweep_is_left_alone_and_named(tmp_path):
    for name, text in (("config.yaml", "{}"), ("study.json", "{}"), ("report.html", "the sweep's page")):
        (tmp_path / name).write_text(text)
    done = command("report", tmp_path)
    assert done.returncode == 2 and f"a sweep, not a run; its page is {tmp_path / 'report.html'}" in done.stderr
    assert (tmp_path / "report.html").read_text() == "the sweep's page"


def test_a_full_disk_leaves_the_old_page(run):
    (run.root / "report.html").write_text("old")
    full = command("report", run.root, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))
    assert full.returncode == 2 and "Traceback" not in full.stderr
    assert (run.root / "report.html").read_text() == "old"
