"""What Ray keeps private and this project uses: still there in the installed version, with the meaning that it needs."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from actors import ray_private

PRIVATE = {
    "ray._private.state": ("state.get_cluster_config", "node_groups"),
    "ray._private.ray_constants": ("ENABLE_RAY_CLUSTER", "use_loopback_only"),
    "ray._private.services": ("canonicalize_bootstrap_address", "head_address"),
    "ray.serve._private.replica": ("add_port_to_grpc_server", "keep_replica_on_loopback"),
    "ray.serve._private.constants": ("RAY_SERVE_PROXY_USE_GRPC", "keep_replica_on_loopback"),
}
"""Module -> name in it, and the function of `actors.ray_private` that needs it."""


@pytest.mark.parametrize("module", PRIVATE)
def test_every_private_name_is_there(module):
    name, user = PRIVATE[module]
    assert hasattr(ray_private, user)
    try:
        value = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Ray {ray.__version__} has no {module}.{name} any more ({error}); rewrite actors.ray_private.{user}")


def test_no_other_module_uses_what_ray_keeps_private():
    root = Path(__file__).parents[2]
    users = [
        p
        for room in ("syn4seg", "actors")
        for p in (root / room).rglob("*.py")
        if re.search(r"ray\.(serve\.)?_private", p.read_text())
    ]
    assert [path.name for path in users] == ["ray_private.py"]


def test_loopback_only_is_what_the_variable_of_ray_sets():
    script = "from ray._private import ray_constants as c; print(c.ENABLE_RAY_CLUSTER)"
    for variable, expected in (("0", "False"), ("1", "True")):
        settings = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": variable}
        done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected, f"Ray {ray.__version__} reads another variable; see use_loopback_only"


def test_an_address_stays_and_auto_is_the_variable_of_ray(monkeypatch):
    assert ray_private.head_address("10.0.0.7:6379") == "10.0.0.7:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.8:6380")
    assert ray_private.head_address("auto") == "10.0.0.8:6380"
    with pytest.raises(ValueError, match="nonsense"):
        ray_private.head_address("nonsense")


@pytest.mark.slow
def test_a_cluster_without_an_autoscaler_has_no_node_groups(ray_cluster):
    assert list(ray_private.node_groups()) == []
