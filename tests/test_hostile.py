"""Hostile and damaged inputs: none may end in a traceback, a hang, or a file outside. `make hostile` hands out many more."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.hostile.inputs import cases, outcome
from tests.hostile.runs import sharded


def test_every_hostile_input_is_taken_or_refused_with_one_message(finished, tmp_path):
    root, _ = finished
    defects, kinds = [], set()
    both = {"runs": Path(root), "sharded runs": sharded(Path(root), tmp_path / "sharded")}
    for number, (kind, case) in enumerate(cases(20261129, 160, both)):
        folder = tmp_path / str(number)
        folder.mkdir()
        result = outcome(case, folder)
        kinds.add(kind)
        if result not in ("taken", "refused"):
            defects.append(f"{number} {kind}: {case[0]}: {result}")
    assert defects == [] and len(kinds) == 8


def test_a_defect_is_seen(tmp_path):
    def leaves_a_file(folder):
        (folder.parent / "beside").touch()

    def fails(_):
        raise KeyError("x")

    for number, (case, word) in enumerate(((leaves_a_file, "files outside"), (fails, "KeyError"), (lambda _: None, "taken"))):
        (tmp_path / str(number)).mkdir()
        assert outcome(("case", case), tmp_path / str(number)).startswith(word)


VERBS = {
    "verify": ["verify", "RUN"],
    "watch": ["watch", "RUN", "--once"],
    "export": ["export", "RUN", "--format", "voc", "--to", "OUT"],
    "compare": ["compare", "RUN", "RUN", "--to", "PAGE"],
    "report": ["report", "RUN", "--to", "PAGE"],
    "audit": ["audit", "RUN"],
}


def _as_integers(path):
    table = pq.read_table(path)
    columns = [pa.array(range(len(table))) if pa.types.is_string(c.type) else c for c in table.columns]
    pq.write_table(pa.table(columns, table.column_names), path)


def _without(path, column):
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


HARMS = {
    "empty configuration": lambda run: (run / "config.yaml").write_bytes(b""),
    "two mappings": lambda run: (run / "config.yaml").write_bytes(b"{}{}"),
    "bytes behind the configuration": lambda run: (run / "config.yaml").write_bytes(
        (run / "config.yaml").read_bytes() + b"\x00\xff\xfe"
    ),
    "results that are a list": lambda run: (run / "results.json").write_text("[]"),
    "support that is a number": lambda run: (run / "draws/0/support.json").write_text('{"support": 3}'),
    "prompts without verdicts": lambda run: _without(run / "prompts.parquet", "accepted"),
    "a plan without prompts": lambda run: _without(run / "plan.parquet", "prompt_row"),
    "a plan of integers": lambda run: _as_integers(run / "plan.parquet"),
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("harm", HARMS)
def test_every_verb_has_one_message_for_a_damaged_file_of_a_run(finished, tmp_path, syn4seg, harm, sealed):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    if not sealed:  # as earlier versions left a run
        for folder in list(run.rglob(".seals")):
            shutil.rmtree(folder)
    HARMS[harm](run)
    codes = {}
    for verb, words in VERBS.items():
        places = {"RUN": run, "OUT": tmp_path / "out", "PAGE": tmp_path / "page.html"}
        codes[verb], said, complaint = syn4seg(*(places.get(word, word) for word in words))
        assert codes[verb] in (0, 1, 2) and "Traceback" not in said + complaint, (verb, complaint)
        assert complaint.count("error: ") == (codes[verb] == 2), (verb, complaint)
    assert codes["verify"] in (1, 2) or not sealed, codes


def test_a_flipped_bit_in_a_classifier_is_named_before_it_scores_and_by_verify(finished, small, tmp_path, syn4seg):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run/draws/0/checkpoints/syn4seg.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 4
    path.write_bytes(whole)
    for number, words in (
        (2, ["evaluate", *small, "data.draws=2", "evaluation.mean=all_classes", "--out", tmp_path / "run"]),
        (1, ["verify", tmp_path / "run"]),
    ):
        code, said, complaint = syn4seg(*words)
        assert code == number and "draws/0/checkpoints/syn4seg.safetensors: its content is not" in said + complaint


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("harm", ["reasons", "classes", "nothing left"])
def test_a_forged_manifest_fails_verify_and_is_not_exported(finished, tmp_path, syn4seg, harm, sealed):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    manifest = run / "draws/0/manifest.parquet"
    table = pq.read_table(manifest)
    if harm == "nothing left":
        pq.write_table(pq.read_table(run / "plan.parquet").slice(0, 0), run / "plan.parquet")
        table = table.slice(0, 0)
    elif harm == "classes":
        at = table.column_names.index("class_id")
        table = table.set_column(at, table.schema.field(at), pa.array([99] * len(table), table.schema.field(at).type))
    else:
        at, reasons = table.column_names.index("reason"), table["reason"].to_pylist()
        accepted = [i for i, reason in enumerate(reasons) if not reason][:12]
        assert len(accepted) == 12
        reasons = ["target_too_small" if i in accepted else reason for i, reason in enumerate(reasons)]
        table = table.set_column(at, table.schema.field(at), pa.array(reasons, table.schema.field(at).type))
    pq.write_table(table, manifest)
    if not sealed:
        for folder in list(run.rglob(".seals")):
            shutil.rmtree(folder)
    code, said, complaint = syn4seg("verify", run)
    assert not sealed or (
        code == 1 and ("plan" if harm == "nothing left" else "manifest") + ".parquet: its content is not" in complaint
    )
    assert code in (1, 2), said + complaint
    code, _, complaint = syn4seg("export", run, "--format", "voc", "--to", tmp_path / "out")
    assert code in (1, 2) or (harm, sealed) == ("reasons", False), complaint
    assert sealed is False or (code == 2 and not (tmp_path / "out").exists())


@pytest.mark.parametrize("special", ["pipe", "device"])
@pytest.mark.parametrize("what", ["images/*/*.png", "draws/0/records/*/*.json", "draws/0/manifest.parquet"])
def test_a_special_file_in_a_run_is_named_and_holds_nobody_up(finished, tmp_path, special, what):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    path = min(run.glob(what))
    path.unlink()
    os.mkfifo(path) if special == "pipe" else path.symlink_to("/dev/zero")
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))}
    for words in (["verify", run], ["export", run, "--format", "voc", "--to", tmp_path / "out"]):
        line = [sys.executable, "-m", "syn4seg.cli", *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **limits)
        said = done.stdout + done.stderr
        assert done.returncode in ((1, 2) if words[0] == "verify" else (0, 1, 2)) and "Traceback" not in said, said
        assert words[0] == "export" or path.stem in said
