"""A local cluster is closed to everybody else; a job cannot lose its run; every node must see the same files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors import cluster
from actors.cluster import check_out, connect, inside_job, store_bytes_for
from syn4seg.config.placement import PlacementConfig
from syn4seg.errors import UserError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

LISTENING = """
import json, os, psutil, subprocess, sys
from actors.cluster import connect
from syn4seg.config.placement import PlacementConfig
connect(PlacementConfig(address="local", object_store_gib=0.1))
import ray
niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
me = psutil.Process()
ours = [me, *me.children(recursive=True)]
found = [(p.name(), c.laddr.ip) for p in ours for c in p.net_connections("inet") if c.status == "LISTEN"]
stranger = '''from actors.cluster import connect; from syn4seg.config.placement import PlacementConfig
connect(PlacementConfig(address=%r))'''
open_to = {}
for who, token in (("guesser", "0" * 64), ("owner", os.environ["RAY_AUTH_TOKEN"])):
    seen = os.environ | {"RAY_AUTH_TOKEN": token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    open_to[who] = subprocess.run([sys.executable, "-c", stranger % ray.get_runtime_context().gcs_address], env=seen, text=True,
                                  capture_output=True).stderr
from ray._common.usage.usage_lib import usage_stats_enabled
from pathlib import Path
sockets = {c.laddr for p in ours for c in p.net_connections("unix") if "/session_" in str(c.laddr)}
closed = lambda folder: folder.stat().st_mode & 0o077 == 0 and folder.stat().st_uid == os.getuid()
private = bool(sockets) and all(any(map(closed, Path(socket).parents)) for socket in sockets)
print(json.dumps({"listening": found, "open": open_to, "private": private, "reports usage": usage_stats_enabled(),
                  "niceness": [niceness, os.nice(0)]}))
"""

TWO_NODES = """
import json, os, sys
from pathlib import Path
import ray
from ray._private.worker import global_worker
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from actors.cluster import check_shared, connect, node_resources, start_seconds, store_bytes_for
from syn4seg.config.placement import PlacementConfig
from syn4seg.errors import UserError

here, there = (Path(sys.argv[1]) / name for name in "ab")
small = dict(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20)
for folder in (here, there):
    folder.mkdir()
os.chdir(here)
cluster = Cluster(initialize_head=True, head_node_args=small | {"node_name": "first"})
os.chdir(there)
cluster.add_node(**small, node_name="second")
os.chdir(here)
connect(PlacementConfig(address=cluster.address))

def said(*args):
    try:
        check_shared(*args)
    except UserError as error:
        return str(error)

# /proc/self/cwd is what the process that asks is in: another directory on either node, as a path without a common mount is
answers = {"same": said(sys.argv[1] + "/run"), "other": said("/proc/self/cwd/run"), "url": said("memory://run"), "unknown": said("nowhere://run"),
           "input": said("memory://run", {"synthesis.model": str(here / "sd3"), "refinement.model": "embedded-sam"})}
answers["relative"] = said("memory://run", {"data.root": "../b", "refinement.model": "embedded-sam"})
answers["store"] = [store_bytes_for(PlacementConfig(address=cluster.address, object_store_gib=gib)) for gib in (None, 2)]
answers["seconds"] = [start_seconds()]
answers["left"] = [str(p) for p in (*here.iterdir(), *there.iterdir())]
answers["now"] = len(node_resources())
kind = autoscaler_pb2.NodeGroupConfig(name="l40s", resources={"GPU": 4, "accelerator_type:L40S": 1}, max_count=3)
config = autoscaler_pb2.ClusterConfig(node_group_configs=[kind]).SerializeToString()
global_worker.gcs_client.internal_kv_put(GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(), config, True,
                                         GCS_AUTOSCALER_STATE_NAMESPACE.encode())
answers["seconds"] += [start_seconds()]
answers["promised"] = [dict(n) for n in node_resources()[2:]]
print(json.dumps(answers))
ray.shutdown()
cluster.shutdown()
"""


def run_script(script: str, *args: str, **environment: str) -> dict:
    """What a script prints last, in a process that inherits no setting of Ray's."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | environment
    clean["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script, *args], env=clean, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_only_and_refuses_a_stranger_with_another_token():
    found = run_script(LISTENING)
    names = [name for name, _ in found["listening"]]
    assert {"gcs_server", "raylet"} <= set(names)
    assert len(names) > 8  # the driver, the agents and the workers too
    assert {ip.removeprefix("::ffff:") for _, ip in found["listening"]} == {"127.0.0.1"}
    assert "the cluster does not let us in" in found["open"]["guesser"]
    assert "UserError" not in found["open"]["owner"]
    assert found["reports usage"] is False
    assert len(set(found["niceness"])) == 1  # beside another busy process the stream has its fair share
    assert found["private"]  # no other user of the machine reaches the sockets


@pytest.mark.slow
def test_every_node_must_see_the_run_and_the_nodes_that_do_not_are_named():
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        found = run_script(TWO_NODES, folder, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="disabled")
    assert found["same"] is None
    assert found["url"] is None
    assert "node second: --out: nowhere://run: nowhere:// is not supported" in found["unknown"]
    assert "node second: --out: No such file" in found["other"]
    assert "node first" not in found["other"]
    assert "s3://" in found["other"]
    assert "node first: synthesis.model=" in found["input"] and "node second: synthesis.model=" in found["input"]
    assert "embedded-sam" not in found["input"]
    assert "data.root=../b: relative to this process's directory" in found["relative"]
    assert found["store"] == [pytest.approx(0.3 * 160 * 2**20, rel=0.01), 2 * 2**30]
    assert found["seconds"] == [600, 1800]  # nodes that are not there yet take their time
    assert found["left"] == []
    assert found["now"] == 2
    assert found["promised"] == [{"GPU": 4.0, "accelerator_type:L40S": 1.0}] * 3


def test_a_job_may_not_keep_its_run_in_the_working_directory_that_goes_with_it(monkeypatch):
    for out in (None, "runs/x", "./x", "/mnt/x", "s3://bucket/x"):
        check_out(out)  # no job
    monkeypatch.setenv(JOB, "{}")
    assert inside_job()
    for out in ("/mnt/shared/x", "s3://bucket/x", "s3:/bucket/x", "gs://bucket/x", "file:///mnt/x"):
        check_out(out)
    for out in ("runs/x", "./x", "file:runs/x"):
        with pytest.raises(UserError, match=r"temporary working directory.*--out /mnt/shared.*s3://"):
            check_out(out)
    with pytest.raises(UserError, match="--out is not given"):
        check_out(None)


def test_the_command_refuses_such_a_run_before_anything_is_written(tmp_path, small):
    command = [sys.executable, "-m", "syn4seg.cli", "run", *small]
    environment = os.environ | {JOB: "{}", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out is not given") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_job_uses_the_cluster_that_it_is_on(monkeypatch):
    monkeypatch.setenv(JOB, "{}")
    with pytest.raises(UserError, match=r"placement\.address=local: this is a Ray job"):
        connect(PlacementConfig(address="local"))


def test_an_empty_size_of_the_object_store_is_one_gibibyte_on_this_machine():
    assert store_bytes_for(PlacementConfig()) == store_bytes_for(PlacementConfig(address="local", object_store_gib=1)) == 2**30


def test_a_folder_that_others_may_enter_is_no_place_for_the_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "Path", lambda _: tmp_path / "sockets")
    assert cluster._private_folder().stat().st_mode & 0o777 == 0o700
    (tmp_path / "sockets").chmod(0o750)
    with pytest.raises(UserError, match="not a folder of this user alone"):
        cluster._private_folder()
    (tmp_path / "sockets").rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "sockets").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="not a folder of this user alone"):
        cluster._private_folder()


def test_an_address_at_which_nothing_answers_is_one_sentence_at_once(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"placement\.address=127\.0\.0\.1:\d+: nothing answers there"):
            connect(PlacementConfig(address=f"127.0.0.1:{free.getsockname()[1]}"))
    for address in ("ray://head:10001", "http://head:8265"):
        with pytest.raises(UserError, match=r"expected HOST:PORT.*ray job submit"):
            connect(PlacementConfig(address=address))
    with pytest.raises(UserError, match=r"placement\.address=nonsense: "):
        connect(PlacementConfig(address="nonsense"))


def test_a_line_reaches_a_pipe_at_once_and_is_not_broken_into_several():
    script = "from syn4seg.terminal import Terminal; Terminal().note('x' * 300 + ' ' + 'y' * 300); input()"
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True, env=clean) as child:
        assert child.stdout and child.stdin
        assert child.stdout.readline() == "x" * 300 + " " + "y" * 300 + "\n"  # the child is still waiting for input
        assert child.poll() is None
        child.stdin.write("\n")


def test_ended_sessions_of_ray_do_not_pile_up(tmp_path):
    from actors.cluster import KEPT_SESSIONS, _drop_old_sessions

    dead = [tmp_path / f"session_2026-11-2{day}_10-00-00_000000_{2**22 + day}" for day in range(1, 8)]
    alive = tmp_path / f"session_2026-11-20_10-00-00_000000_{os.getpid()}"
    for folder in (*dead, alive, tmp_path / "prom_metrics"):
        (folder / "logs").mkdir(parents=True)
    (tmp_path / "session_latest").symlink_to(alive)
    _drop_old_sessions(tmp_path)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {alive.name, "session_latest", "prom_metrics", *(p.name for p in dead[-KEPT_SESSIONS:])}


def test_ray_that_does_not_start_is_tried_once_more_and_then_one_sentence(monkeypatch, tmp_path):
    import ray

    from actors.cluster import _start_here
    from syn4seg.config.placement import PlacementConfig

    calls = []

    def slow(**_):
        calls.append(1)
        raise RuntimeError("raylet did not\nanswer in time")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(
        UserError, match=r"Ray did not start on this machine, twice \(raylet did not answer in time\).*placement\.runner=inline"
    ):
        _start_here(PlacementConfig(), 4)
    assert len(calls) == 2


@pytest.mark.parametrize("trusted", ["", "my_nets:tiny"])
def test_the_processes_of_a_joined_cluster_learn_which_code_the_person_named(monkeypatch, trusted):
    import ray

    from syn4seg.trust import VARIABLE

    given = {}
    monkeypatch.setenv(VARIABLE, trusted)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(cluster.ray_private, "head_address", lambda _: address)
        connect(PlacementConfig(address=address))
    assert given["address"] == address
    assert given.get("runtime_env") == ({"env_vars": {VARIABLE: trusted}} if trusted else None)
