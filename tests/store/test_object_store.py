"""A whole run in an S3-compatible store: moto's server on loopback. The same digest as in a folder, stopped and resumed too."""

from __future__ import annotations

import json
import os
import sys

import pytest

from syn4seg.errors import UserError

pytest.importorskip("s3fs", reason="s3fs is not installed (extra: s3)")
pytest.importorskip("moto.server", reason="moto is not installed (extra: dev)")

from syn4seg import cli
from syn4seg.config.loading import load
from syn4seg.errors import Interrupted
from syn4seg.stages.results import verify_run
from syn4seg.store.files import as_path, read_json
from syn4seg.store.listing import list_files
from syn4seg.store.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on a server of its own; the environment says where it is, as it would elsewhere."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {key: os.environ.get(key) for key in (*given, "AWS_PROFILE")}
    os.environ.pop("AWS_PROFILE", None)
    os.environ.update(given)
    try:
        as_path("s3://runs/x").fs.mkdir("runs")
        yield "s3://runs"
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        server.stop()


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small):
    """An undisturbed run in a folder: its directory and the digest of its samples."""
    from typer.testing import CliRunner

    out = tmp_path_factory.mktemp("reference") / "run"
    done = CliRunner().invoke(cli.app, ["run", *small, "--out", str(out)])
    assert done.exit_code == 0, done.output
    digest, problems = verify_run(RunDir(out))
    assert problems == []
    return out, digest


@pytest.mark.parametrize("layout", ["files", "sharded"])
def test_a_run_in_a_bucket_equals_one_in_a_folder(bucket, small, reference, layout, syn4seg):
    root, digest = reference
    out = f"{bucket}/{layout}"
    code, _, complaint = syn4seg("run", *small, f"layout={layout}", "--out", out)
    assert code == 0, complaint
    for words in (["verify", out], ["verify", out, "--quick"]):
        code, said, complaint = syn4seg(*words)
        assert code == 0 and said.startswith((f"digest: {digest}\nverified: ", f"digest: {digest}\ncomplete: ")), complaint
    assert syn4seg("audit", out)[0] == 0
    results = read_json(RunDir(out).results)
    assert results["rows"] == json.loads((root / "results.json").read_text())["rows"]
    before = list_files(as_path(out))
    assert syn4seg("run", *small, f"layout={layout}", "--out", out)[0] == 0
    after = list_files(as_path(out))
    assert {k: v for k, v in after.items() if k != "metrics.jsonl"} == {k: v for k, v in before.items() if k != "metrics.jsonl"}
    assert not any(name.endswith(".partial") for name in after)


@pytest.mark.parametrize("layout", ["files", "sharded"])
def test_a_run_in_a_bucket_that_is_stopped_goes_on_and_is_taken_over(bucket, small, reference, layout, syn4seg, monkeypatch):
    from actors.writer import Writer

    out, calls, write = f"{bucket}/stopped-{layout}", [], Writer.__call__

    def stops_at_the_third(self, rows):
        calls.append(len(rows["sample_id"]))
        if len(calls) == 3:
            raise Interrupted
        return write(self, rows)

    keys = [*small, f"layout={layout}", "placement.synthesis.batch=5"]
    monkeypatch.setattr(Writer, "__call__", stops_at_the_third)
    assert syn4seg("run", *keys, "--out", out)[0] == 130
    assert sum(calls[:2]) == len(RunDir(out).draw(0).done()) < 24
    assert sum(calls) == len(RunDir(out).samples.images()), "images are kept before labels are made"
    assert syn4seg("run", *keys, "--out", out)[0] == 0
    assert sum(calls) == 24 + calls[2]
    assert syn4seg("verify", out)[1].startswith(f"digest: {reference[1]}\nverified: ")
    code, _, complaint = syn4seg("synthesize", *small, "refinement.band_width=1", "--out", f"{out}-new", "--reuse", out)
    assert code == 0, complaint
    assert sorted(RunDir(f"{out}-new").samples.image_digests()) == sorted(RunDir(reference[0]).samples.image_digests())


@pytest.mark.parametrize(
    ("place", "environment", "said"),
    [
        ("s3://nowhere/run", {}, "there is no bucket 'nowhere'"),
        ("s3://runs/run", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached"),
        (
            "s3://runs/run",
            {
                "AWS_ACCESS_KEY_ID": None,
                "AWS_SECRET_ACCESS_KEY": None,
                "AWS_CONFIG_FILE": "/none",
                "AWS_SHARED_CREDENTIALS_FILE": "/none",
            },
            "Unable to locate credentials",
        ),
        ("gopher://runs/run", {}, "gopher:// is not supported"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line_with_the_remedy(bucket, small, syn4seg, monkeypatch, place, environment, said):
    for key, value in environment.items():
        monkeypatch.delenv(key, raising=False)
        if value is not None:
            monkeypatch.setenv(key, value)
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    for words in (["run", *small, "--out", place], ["verify", place]):
        code, _, complaint = syn4seg(*words)
        assert code == 2
        assert said in complaint
        assert complaint.count("\n") == 1 and "Traceback" not in complaint
    S3FileSystem.clear_instance_cache()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'syn4seg-ray\[gs\]'"):
        RunDir("gs://bucket/run")
    assert load(None).layout == "files"
