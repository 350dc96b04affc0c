"""How a failure in another process ends this one: what a person can mend is a UserError, any other exception a WorkerError.

Ray does not carry every exception over: one from a stream's actor arrives as text. Such a process therefore leaves a `Failure` with
the ledger of the stream before it raises. What Ray raised is the cause of the error here, since its text holds the traceback of
the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from syn4seg.errors import ENVIRONMENT_ERRNOS, UserError, WorkerError

LOST_PEER = re.compile(r"connection (closed|reset|refused)|gloo|nccl", re.IGNORECASE)
"""What `torch.distributed` says in a process whose peer was lost."""


@dataclass(frozen=True)
class Failure:
    """An exception of another process as plain data: one line, and whether a person can mend it."""

    line: str
    mendable: bool

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception in the process that raised it."""
        line = " ".join(str(error).split())
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRNOS):
            return cls(line, True)
        return cls(f"{type(error).__name__}: {line}", False)


def local_error(subject: str, error: BaseException, failure: Failure | None = None, remedy: str = "") -> UserError | WorkerError:
    """Return the exception that ends the command, to be raised `from error`.

    Args:
        subject: what failed, as the message begins: "training", "the stream".
        error: what Ray or Ray Train raised in this process.
        failure: what the failed process left by another way than Ray's; None: it is looked for in `error`.
        remedy: what may help where a process was lost, e.g. keys of the placement.

    Returns:
        The message of a UserError as a UserError. If nothing but the loss of processes is known (killed, out of memory, node gone),
        a UserError too. Otherwise a WorkerError of one line.
    """
    failure = failure or _failure_in(error)
    if failure is None:
        advice = f"; {remedy}" if remedy else ""
        return UserError(
            f"{subject}: a process was lost or did not start (killed, out of memory, or its node is gone){advice}; run the "
            "same command again, which goes on from here"
        )
    return UserError(failure.line) if failure.mendable else WorkerError(f"{subject} failed: {failure.line}")


def _failure_in(error: BaseException) -> Failure | None:
    """Return the failure that an error of Ray holds, a mendable one first; None if processes were lost and no more is known."""
    from ray.exceptions import ActorDiedError, RayError, RayTaskError, UserCodeException
    from ray.train import TrainingFailedError

    match error:
        case TrainingFailedError():
            causes = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
        case ActorDiedError(actor_init_failed=True):  # its text ends with the exception's own
            return Failure(str(error).strip().splitlines()[-1].strip(), False)
        case _:
            causes = [error]

    def is_loss(cause: BaseException) -> bool:
        """Return whether an error is the loss of a process. Ray wraps what user code raised into a UserCodeException or, if
        it cannot be pickled, a plain RayError."""
        raised_by_ray = type(cause).__module__.startswith("ray.") and type(cause) not in (RayError, UserCodeException)
        return raised_by_ray or bool(LOST_PEER.search(str(cause)))

    causes = [cause.cause if isinstance(cause, RayTaskError) else cause for cause in causes]
    failures = [Failure.of(cause) for cause in causes if not is_loss(cause)]
    return max(failures, key=lambda failure: failure.mendable, default=None)
