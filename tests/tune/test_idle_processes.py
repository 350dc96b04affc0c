"""The private part of Ray Tune that is replaced: it is still there in the installed version, and it is put back."""

from __future__ import annotations

import inspect

import ray
from ray.tune.execution import tune_controller

from tune.idle_processes import KeepAllProcesses, idle_processes_kept

CHANGED = f"Ray {ray.__version__} keeps idle trial processes in another way than Ray 2.60; read tune/idle_processes.py and adapt it"


def test_the_installed_ray_has_what_is_replaced():
    store = tune_controller._ObjectCache(may_keep_one=True)
    assert hasattr(store, "_cached_objects") and hasattr(store, "_num_cached_objects"), CHANGED
    assert list(inspect.signature(store.cache_object).parameters) == ["key", "obj"], CHANGED
    assert "force_all" in inspect.signature(store.flush_cached_objects).parameters, CHANGED
    assert "_ObjectCache(" in inspect.getsource(tune_controller), CHANGED


def test_every_process_is_kept_until_the_end_and_ray_is_as_before_afterwards():
    original = tune_controller._ObjectCache
    with idle_processes_kept():
        assert tune_controller._ObjectCache is KeepAllProcesses
        store = tune_controller._ObjectCache(may_keep_one=True)
        assert all(store.cache_object("key", name) for name in ("one", "two", "three"))
        assert list(store.flush_cached_objects()) == [] and store.num_cached_objects == 3
        assert sorted(store.flush_cached_objects(force_all=True)) == ["one", "three", "two"]
    assert tune_controller._ObjectCache is original
