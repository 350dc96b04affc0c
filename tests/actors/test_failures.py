"""A failure in another process: a person's mistake and a lost process are a UserError, any other a WorkerError of one line."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import traceback

import pyarrow as pa
import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError, UserCodeException, WorkerCrashedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from actors.failures import Failure, local_error
from actors.placement import Operator
from actors.streaming import run_stream
from syn4seg.config.placement import PoolConfig
from syn4seg.errors import StoreError, UserError, WorkerError

MISTAKE, BUG = UserError("data.fold=9:\n no such fold"), KeyError("what")
PEER = RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:2712")


def task_error(cause: BaseException) -> RayTaskError:
    return RayTaskError("f", f"Traceback: ...\n{type(cause).__name__}: {cause}", cause, pid=1, ip="127.0.0.1")


def lost_actor() -> RayError:
    return ActorDiedError()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (task_error(MISTAKE), UserError, "data.fold=9: no such fold"),
        (task_error(StoreError("disk full")), UserError, "disk full"),
        (task_error(OSError(errno.ENOSPC, "No space left", "/x")), UserError, "[Errno 28] No space left: '/x'"),
        (task_error(BUG), WorkerError, "scoring failed: KeyError: 'what'"),
        (task_error(FileNotFoundError(2, "none", "/x")), WorkerError, "scoring failed: FileNotFoundError: [Errno 2] none: '/x'"),
        (task_error(UserCodeException("UDF failed")), WorkerError, "scoring failed: UserCodeException: UDF failed"),
        (task_error(lost_actor()), UserError, None),
        (lost_actor(), UserError, None),
        (WorkerCrashedError(), UserError, None),
        (ActorDiedError(task_error(BUG)), WorkerError, "scoring failed: KeyError: 'what'"),
        (WorkerGroupError("", {0: PEER, 1: lost_actor()}), UserError, None),
        (WorkerGroupError("", {0: PEER}), UserError, None),
        (WorkerGroupError("", {0: PEER, 1: BUG}), WorkerError, "scoring failed: KeyError: 'what'"),
        (WorkerGroupError("", {0: BUG, 1: MISTAKE}), UserError, "data.fold=9: no such fold"),
        (WorkerGroupError("", {0: WorkerHealthCheckFailedError("no answer", lost_actor())}), UserError, None),
        (WorkerGroupError("", {0: task_error(BUG)}), WorkerError, "scoring failed: KeyError: 'what'"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), UserError, None),
        (ControllerError(BUG), WorkerError, "scoring failed: KeyError: 'what'"),
    ],
)
def test_what_ray_raises_becomes_what_ends_the_command(error, kind, message):
    ending = local_error("scoring", error, remedy="lower x")
    assert type(ending) is kind and "\n" not in str(ending)
    lost = "scoring: a process was lost or did not start (killed, out of memory, or its node is gone); lower x; run"
    assert str(ending) == message or (message is None and str(ending).startswith(lost))


def test_what_the_process_left_itself_counts_before_what_ray_says():
    assert str(local_error("the stream", task_error(UserCodeException("UDF failed")), Failure("disk full", True))) == "disk full"
    assert isinstance(local_error("the stream", lost_actor(), Failure("KeyError: 'what'", False)), WorkerError)


def test_a_failure_is_plain_data_even_if_its_exception_is_not():
    class Unpicklable(Exception):
        def __init__(self):
            super().__init__("two\nlines")
            self.handle = sys.stdout

    failure = Failure.of(Unpicklable())
    assert pickle.loads(pickle.dumps(failure)) == failure == Failure("Unpicklable: two lines", False)


class Failing:
    """Fails in its constructor or in its call, as `how` says."""

    reads = ("sample_id", "reason")
    adds = ()

    def __init__(self, how: str):
        self.how = how
        if how.startswith("load "):
            fail(how.removeprefix("load "))

    def __call__(self, rows):
        fail(self.how)
        return dict(rows)


def fail(how: str) -> None:
    if how == "mistake":
        raise UserError("key=3: expected 4;\n mend it")
    if how == "store":
        raise StoreError("disk full")
    if how == "bug":
        raise KeyError("the line of the bug")


def stream_error(how: str, kind: type[Exception]) -> Exception:
    rows = pa.table({"sample_id": ["a", "b"], "reason": ["", ""], "traceback": ["", ""]})
    with pytest.raises(kind) as caught:
        list(run_stream(rows, [Operator(Failing, {"how": how}, PoolConfig(batch=2, cpus=0.25), "failing")], 2))
    return caught.value


@pytest.mark.slow
def test_a_stream_ends_with_the_message_of_a_mistake_and_with_the_line_of_a_bug(ray_cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for how, message in (("mistake", "key=3: expected 4; mend it"), ("store", "disk full")):
        for prefix in ("", "load "):
            assert str(stream_error(prefix + how, UserError)) == message
    for how in ("bug", "load bug"):
        error = stream_error(how, WorkerError)
        assert str(error) == "the stream failed: KeyError: 'the line of the bug'"
        assert 'raise KeyError("the line of the bug")' in "".join(traceback.format_exception(error))


@pytest.mark.slow
def test_a_process_that_is_killed_in_a_call_is_no_fault_of_the_program(ray_cluster):
    import ray

    class Victim:
        def die(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(ray.remote(num_cpus=0)(Victim).remote().die.remote())
    assert type(local_error("scoring", caught.value)) is UserError
