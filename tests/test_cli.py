"""The command line as a user meets it: exit codes, one clear message, nothing written on a mistake, the whole job."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest

from syn4seg.stages.results import verify_run
from syn4seg.store.rundir import RunDir


def syn4seg(*words: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "syn4seg.cli", *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_help_loads_nothing_heavy():
    heavy = ("torch", "ray", "diffusers", "transformers", "numpy", "pyarrow", "pydantic", "optuna")
    code = f"import sys, syn4seg.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
    text = syn4seg("--help").stdout
    verbs = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line[:3].strip()]
    assert verbs[:7] == ["run", "prompts", "synthesize", "refine", "train", "evaluate", "sweep"]
    assert set(verbs[7:]) == {
        *("verify", "watch", "report", "compare", "export", "prepare", "plan", "audit", "config", "doctor", "cache"),
        *("predict", "serve", "model", "extend", "ls", "init"),
    }
    assert subprocess.run([sys.executable, "-m", "syn4seg.cli", "-h"], capture_output=True, text=True).stdout == text


def test_every_verb_takes_h_q_and_v_and_a_shell_can_complete_them(monkeypatch):
    from typer.main import get_command

    from syn4seg import cli

    app = get_command(cli.app)
    for name, verb in app.commands.items():
        options = {option for parameter in verb.params for option in parameter.opts}
        assert name == "cache" or {"-q", "--quiet", "-v", "--verbose"} <= options, name
        assert verb.make_context(name, [], resilient_parsing=True, parent=app.make_context("syn4seg", [], resilient_parsing=True))
    assert {"--install-completion", "--version"} <= {option for parameter in app.params for option in parameter.opts}
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # a test may run without a shell around it
    assert "complete" in syn4seg("--show-completion", "bash").stdout
    assert syn4seg("vrify").stderr.splitlines()[-1].endswith("Did you mean 'verify'?")


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert syn4seg("--version").stdout == f"syn4seg {version('syn4seg-ray')}\n"


def test_remarks_of_libraries_are_shown_with_v_alone_and_q_leaves_what_was_asked_for(capsys):
    import warnings

    from syn4seg import cli
    from syn4seg.options import loudness, say_first, set_loudness

    def verb(name: str = "a") -> None:
        """Warn as a library would."""
        say_first("loading")
        warnings.warn(f"remark {loudness()}", DeprecationWarning, stacklevel=1)

    loud, shown = cli.with_loudness(verb), warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for quiet, verbose, text in ((False, False, ""), (True, False, ""), (False, True, "remark 1")):
                warnings.showwarning = lambda message, *_: print(message)
                loud(quiet=quiet, verbose=verbose)
                assert capsys.readouterr().out.strip() == text
    finally:
        warnings.showwarning = shown
        set_loudness(0)


def test_the_library_is_imported_at_its_first_use():
    code = "import sys, syn4seg; assert 'numpy' not in sys.modules; [getattr(syn4seg, n) for n in syn4seg.__all__]; syn4seg.absent"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.endswith("AttributeError: module 'syn4seg' has no attribute 'absent'\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["labeling.bta=1"], "did you mean labeling.beta"),
        (["absent.yaml"], "no such file"),
        (["beta"], "no such file"),
        (["data.fold=9"], "data.fold=9"),
        (["data.shots=5000"], "data.shots=5000"),
        (["data.source=folder", "data.root=nowhere", "base.checkpoint=train"], "nowhere"),
        (["synthesis.source=folder", "synthesis.root=nowhere"], "no folder for class 'ball'"),
        (["refinement.model=missing.pth"], "refinement.model=missing.pth"),
        (["data.source=folder", "data.root=x"], "base.checkpoint"),
        (["segmenter.backbone=my.nets:tiny", "base.checkpoint=train"], "there is no module 'my.nets'"),
        (["segmenter.weights=absent.pt", "base.checkpoint=train"], "segmenter.weights=absent.pt"),
    ],
)
def test_a_mistake_is_one_message_exit_code_2_and_no_directory(tmp_path, words, text):
    done = syn4seg("run", *words, "data.train_images=300", "placement.runner=inline", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


def test_an_impossible_placement_is_refused_at_once_with_the_numbers(tmp_path):
    done = syn4seg("run", "data.train_images=300", "placement.synthesis.size=999", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "placement needs" in done.stderr
    assert "placement.synthesis.size=" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_whole_job_prints_the_ablation_and_writes_results(finished):
    out, text = finished
    assert "Syn4Seg" in text
    assert text.splitlines()[-4:] == [
        f"done: {out}; next:",
        f"  syn4seg report {out}",
        f"  syn4seg verify {out}",
        f"  syn4seg predict {out}/model IMAGES --to DIR",
    ]
    assert "0.00/s" not in text and ", 0/s" not in text
    results = json.loads((out / "results.json").read_text())
    assert list(results["rows"]) == ["apf", "apr", "class_name_raw", "hdig_raw", "support_only", "syn4seg"]
    for row in results["rows"].values():
        of_means = row.pop("harmonic_of_means")["mean"]
        assert of_means == pytest.approx(2 / (1 / row["base"]["mean"] + 1 / row["novel"]["mean"]))
        assert set(row) == {"base", "base_with_background", "novel", "mean", "total", "harmonic", "harmonic_with_background"}
        assert all(set(value) == {"mean", "std", "n"} and value["n"] == 2 for value in row.values())
    assert len(results["per_class"]["syn4seg"]) == 17
    assert {"protocol", "config_digest", "funnel"} <= set(results)
    assert all(0 < row["base"]["mean"] <= 1 for row in results["rows"].values())


def test_verify_prints_the_digest_and_fails_on_damage(finished, tmp_path):
    out, _ = finished
    done = syn4seg("verify", out)
    assert done.returncode == 0
    assert done.stdout.startswith("digest: ") and done.stdout.splitlines()[-1].startswith("verified: every image")
    assert "no pixel" in syn4seg("verify", out, "--quick").stdout.splitlines()[-1]
    shutil.copytree(out, tmp_path / "copy")
    next((tmp_path / "copy").glob("images/*/*.png")).unlink()
    broken = syn4seg("verify", tmp_path / "copy")
    assert broken.returncode == 1
    assert "is missing" in broken.stderr and broken.stderr.splitlines()[-1].startswith("NOT verified: ")
    assert "verified" not in broken.stdout
    assert syn4seg("verify", tmp_path).returncode == 2


def test_the_same_command_again_changes_nothing(finished, small, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")} | {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    results = json.loads((out / "results.json").read_text())
    assert syn4seg("run", *small, "data.draws=2", "--out", out).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert json.loads((out / "results.json").read_text()) == results


def test_another_science_config_is_refused_and_reuse_takes_the_fitting_stages(finished, small, tmp_path):
    out, _ = finished
    refused = syn4seg("run", *small, "refinement.band_width=1", "--out", out)
    assert refused.returncode == 2
    assert "refinement.band_width: 3 -> 1" in refused.stderr
    done = syn4seg("synthesize", *small, "refinement.band_width=1", "--out", tmp_path / "new", "--reuse", out)
    assert done.returncode == 0, done.stderr
    assert "prompts, images, base" in done.stdout
    old = {p.name: p.stat().st_ino for p in out.glob("images/*/*.png")}
    assert {p.name: p.stat().st_ino for p in (tmp_path / "new").glob("images/*/*.png")} == old


def test_single_stages_in_order_equal_the_whole_job(finished, small, tmp_path):
    out, _ = finished
    keys = [*small, "data.draws=2", "--out", str(tmp_path / "run")]
    early = syn4seg("train", *keys)
    assert early.returncode == 2
    assert "run `syn4seg" in early.stderr
    for verb in ("prompts", "synthesize", "refine", "train", "evaluate"):
        done = syn4seg(verb, *keys)
        assert done.returncode == 0, (verb, done.stderr)
    whole, parts = (json.loads((root / "results.json").read_text()) for root in (out, tmp_path / "run"))
    assert whole == parts
    assert verify_run(RunDir(out)) == verify_run(RunDir(tmp_path / "run"))


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes(finished, small, tmp_path):
    import signal
    import time

    out, _ = finished
    keys = [*small, "data.draws=2", "--out", str(tmp_path / "run"), "--reuse", str(out)]
    job = subprocess.Popen(
        [sys.executable, "-m", "syn4seg.cli", "run", *keys], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while job.poll() is None and not list((tmp_path / "run").glob("draws/0/records/*/*.json")):
        time.sleep(0.05)
    job.send_signal(signal.SIGINT)
    _, complaint = job.communicate()
    assert job.returncode == 130
    assert "the same command goes on from here" in complaint
    assert "Traceback" not in complaint
    assert syn4seg("run", *keys).returncode == 0
    assert verify_run(RunDir(tmp_path / "run")) == verify_run(RunDir(out))
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads((out / "results.json").read_text())


def test_config_prints_a_tree_that_loads_back(tmp_path):
    text = syn4seg("config", "embedded", "labeling.beta=0.25").stdout
    (tmp_path / "c.yaml").write_text(text)
    assert syn4seg("config", tmp_path / "c.yaml").stdout == text
    assert "beta: 0.25" in text


def test_the_doctor_is_content_here():
    done = syn4seg("doctor")
    assert done.returncode == 0, done.stdout
    assert "torch" in done.stdout


def test_a_run_is_its_own_configuration_for_later_commands(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    done = syn4seg("evaluate", "evaluation.space=canvas", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "64 canvas" in done.stdout
    assert syn4seg("evaluate", tmp_path / "run", "--out", tmp_path / "run").returncode == 0
    refused = syn4seg("evaluate", "novel.steps=3", "--out", tmp_path / "run")
    assert refused.returncode == 2 and re.search(r"novel.steps: \d+ -> 3\b", refused.stderr)
    assert "embedded, embedded-5x4, pascal5i" in syn4seg("run", "embeded").stderr
