"""`syn4seg sweep`: a mistake is found before anything is made."""

from __future__ import annotations

import signal
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--study", "nope"], "expected a YAML file, or one of all, beta"),
        (["--objective", "nowel"], "did you mean novel"),
        (["--concurrency", "9"], "begin the study with study.window=9"),
        (["study.colour=red"], "study.KEY=VALUE"),
        (["--cache", "s3://bucket/cache"], "a folder of this machine or a network mount"),
        (["--out", "s3://bucket/sweep"], "a folder of this machine or a network mount"),
    ],
)
def test_a_mistake_is_one_message_and_no_directory(tmp_path, monkeypatch, capsys, words, said):
    from syn4seg import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["syn4seg", "sweep", "embedded", "data.train_images=200", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and told.startswith("error: ") and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
