"""`ray job submit` as docs/cluster.md prints it, on a cluster that is started here, guarded by a token, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent
GUIDE = REPOSITORY / "docs" / "cluster.md"
BIN = Path(sys.executable).parent
SHARED = "/mnt/shared"  # the guide's shared directory; here a temporary one


def printed_command() -> str:
    """The first submission in the guide, word for word."""
    return next(line for line in GUIDE.read_text().splitlines() if line.startswith("ray job submit"))


class Head(NamedTuple):
    """A running head node."""

    environment: dict[str, str]
    metrics: str

    def submit(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command], cwd=REPOSITORY, env=self.environment, text=True, capture_output=True, timeout=400
        )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below the range that the system hands out and above the one of Ray's workers."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


@pytest.fixture(scope="module")
def head():
    port, dashboard, agent, client, metrics = free_ports(5)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_") and key != "PYTHONPATH"}
    environment = clean | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HF_TOKEN": "hf_secretsecretsecret",
        "OPENAI_API_KEY": "sk-secretsecretsecret",
    }
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            f"--temp-dir={folder}",
            f"--port={port}",
            "--num-cpus=4",
            "--num-gpus=0",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}",
            f"--ray-client-server-port={client}",
            "--object-store-memory=200000000",
            "--disable-usage-stats",
        ]
        with open(f"{folder}/output", "w") as output:
            ray = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            for _ in range(120):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", agent), timeout=1).close()
                    socket.create_connection(("127.0.0.1", dashboard), timeout=1).close()
                    break
                assert ray.poll() is None, Path(folder, "output").read_text()
                time.sleep(1)
            yield Head(environment, f"http://127.0.0.1:{metrics}/metrics")
        finally:
            survivors = stop(ray)
    assert survivors == []


def stop(ray: subprocess.Popen) -> list[str]:
    """Stop a head node and everything that it started, by pid; return what did not end by itself."""
    started = psutil.Process(ray.pid).children(recursive=True)
    ray.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        ray.wait(60)
    _, survivors = psutil.wait_procs(started, timeout=30)
    names = [" ".join(p.cmdline())[:200] for p in survivors if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    for process in survivors:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with contextlib.suppress(ProcessLookupError):
        ray.kill()
    ray.wait()
    return names


@pytest.mark.slow
def test_the_printed_command_runs_as_a_job_whose_logs_show_progress_and_result_and_no_secret(head, tmp_path, small):
    from syn4seg.stages.results import verify_run
    from syn4seg.store.rundir import RunDir

    small = [*small, "joint.steps=2"]
    keys = " ".join(key for key in small if "runner" not in key)
    done = head.submit(f"{printed_command().replace(SHARED, str(tmp_path))} {keys}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    job = re.search(r"raysubmit_\w+", done.stdout)
    assert job, done.stdout
    logs = head.submit(f"ray job logs {job.group()}").stdout
    assert re.search(r"^labels.*: 24/24, [\d.]+/s, \d+ s", logs, re.M), logs
    assert "Syn4Seg" in logs and "support only" in logs and "done: " in logs
    own = [line for line in logs.splitlines() if line and not line.startswith(("labels", "draw", "images", "novel", "queries"))]
    assert len(own) < 40, logs  # Ray's own lines are few
    (run,) = (tmp_path / "runs").iterdir()

    inline = [sys.executable, "-m", "syn4seg.cli", "run", "embedded", *small, "--out", str(tmp_path / "inline")]
    subprocess.run(inline, check=True, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert verify_run(RunDir(run)) == verify_run(RunDir(tmp_path / "inline"))

    status = head.submit(f"ray job list; ray job status {job.group()}").stdout
    written = [p.read_bytes() for p in run.rglob("*") if p.is_file()]
    for secret in ("HF_TOKEN", "OPENAI_API_KEY", "RAY_AUTH_TOKEN"):
        value = head.environment[secret]
        assert value not in logs + status
        assert not any(value.encode() in data for data in written)


@pytest.mark.slow
def test_a_job_with_a_wrong_key_fails_with_one_sentence(head):
    done = head.submit("ray job submit --working-dir . -- syn4seg run embedded labeling.btea=1 --out /nowhere")
    assert done.returncode == 1
    assert "error: labeling.btea: unknown key; did you mean labeling.beta?" in done.stdout
    assert "Traceback" not in done.stdout
    job = re.search(r"raysubmit_\w+", done.stdout)
    assert job
    assert re.search(r"failed", head.submit(f"ray job status {job.group()}").stdout, re.I)


@pytest.mark.slow
def test_the_job_server_refuses_whoever_has_no_token(head):
    def status_code(**headers: str) -> int:
        request = urllib.request.Request(f"{head.environment['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert status_code() in (401, 403)
    assert status_code(Authorization=f"Bearer {'0' * 64}") in (401, 403)
    assert status_code(Authorization=f"Bearer {head.environment['RAY_AUTH_TOKEN']}") == 200


@pytest.mark.slow
def test_counters_get_rays_prefix_and_one_total_behind_their_name_in_prometheus(head):
    """What docs/grafana.json relies on."""
    script = """
import ray, time
from ray.util.metrics import Counter, Gauge
ray.init(address="auto")
tags = {"run": "r", "stage": "labeling"}
Counter("syn4seg_rows", tag_keys=("run", "stage")).inc(3, tags=tags)
Gauge("syn4seg_queued_rows", tag_keys=("run", "stage")).set(5, tags=tags)
time.sleep(60)
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "count.py").write_text(script)
        with subprocess.Popen(
            ["ray", "job", "submit", "--working-dir", folder, "--", "python", "count.py"],
            env=head.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as job:
            metrics = ""
            while job.poll() is None and "ray_syn4seg_queued_rows" not in metrics:
                time.sleep(1)
                with contextlib.suppress(OSError):
                    metrics = urllib.request.urlopen(head.metrics, timeout=5).read().decode()
            job.terminate()
    own = [line for line in metrics.splitlines() if line.startswith("ray_syn4seg")]
    assert any(re.match(r'ray_syn4seg_rows_total{.*run="r".*stage="labeling".*} 3.0', line) for line in own), own
    assert not any("total_total" in line for line in own)


def test_what_is_sent_with_a_job_is_the_code_and_its_weights_and_little_else(tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    create_package(str(REPOSITORY), tmp_path / "sent.zip", True, excludes=get_runtime_env_default_excludes())
    files = {entry.filename: entry.file_size for entry in zipfile.ZipFile(tmp_path / "sent.zip").infolist()}
    for needed in ("syn4seg/cli.py", "syn4seg/configs/embedded.yaml", "syn4seg/weights/base/fold0.safetensors", "actors/graph.py"):
        assert needed in files
    top = {name.partition("/")[0] for name in files}
    assert not top & {".git", ".venv", "runs", "tests", "docs", ".ruff_cache", ".pytest_cache", "cluster.yaml"}
    assert not any(name.startswith("benchmarks/results/") or name.endswith(".pyc") for name in files)
    assert sum(files.values()) < 40 * 2**20
    assert max(files.values()) < 10 * 2**20  # Ray warns of each larger file


def test_the_guide_prints_every_command_of_the_readme_as_it_is():
    readme = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if line.startswith("ray job submit")]
    assert all(line in GUIDE.read_text() for line in readme)
    assert json.dumps(printed_command()).count("--out") == 1
