"""One batch shared by the processes of `torch.distributed`, so that training is what it would be in one process.

Batch statistics are those of the whole batch, a dropout mask is drawn for the whole batch by every process, and gradients
are summed. Gradients travel in one buffer of fixed order: DistributedDataParallel regroups them after its first step, so a
training of three or more processes that was interrupted would add them up in another order than one that was not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from syn4seg.errors import UserError


def rank_and_world_size() -> tuple[int, int]:
    """Return (number of this process, number of processes); (0, 1) where no process group is set up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum over all processes, without a gradient; `value` itself where there is only one."""
    if rank_and_world_size()[1] == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def all_reduce_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Add up the gradients of all processes, in place."""
    if rank_and_world_size()[1] == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    buffer = all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, buffer.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def broadcast_state(module: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if rank_and_world_size()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


@contextlib.contextmanager
def synchronize_layers(module: nn.Module) -> Iterator[None]:
    """Let batch norms and dropouts of `module` that are in training mode act on the whole batch within the block.

    Process r of w has the rows r, r + w, r + 2 w, ... of every batch, equally many as the others. Such a layer gets another
    `forward` for the time of the block; the layer itself, its parameters, its buffers and their names stay.

    Raises:
        UserError: a batch norm that cannot be shared.
    """
    world, layers = rank_and_world_size()[1], []
    for name, layer in module.named_modules() if world > 1 else ():
        if not layer.training:
            continue
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not _can_be_shared(layer):
            raise UserError(
                f"placement.training.workers={world}: the statistics of {name} ({layer}) cannot be those of the whole batch; "
                "expected torch.nn.BatchNorm2d with weights, running statistics and momentum; set placement.training.workers=1"
            )
        if type(layer) in (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d):
            layers.append(layer)
    try:
        for layer in layers:
            if type(layer) is nn.BatchNorm2d and layer.weight.is_cuda:  # of the same parameters and buffers
                layer.forward = nn.SyncBatchNorm.convert_sync_batchnorm(layer).forward
            else:
                shared = {nn.BatchNorm2d: batch_norm, nn.Dropout: dropout, nn.Dropout2d: dropout2d}[type(layer)]
                layer.forward = functools.partial(shared, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _can_be_shared(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None


class _AllReduceSum(torch.autograd.Function):
    """`all_reduce_sum` with its gradient: the loss of every process depends on what each of them put in."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return all_reduce_sum(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Apply a batch norm to x (N, C, H, W) over the rows of all processes, N the same in each, on any device.

    torch's own SyncBatchNorm is faster and for GPUs alone.
    """
    world = rank_and_world_size()[1]
    wide = x.to(norm.weight.dtype)
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    mean, variance = mean.double(), variance.double()  # differences of squares below
    moments = _AllReduceSum.apply(torch.stack([mean, variance + mean.square()])) / world
    mean, variance = moments[0], moments[1] - moments[0].square()
    count = world * x.numel() / x.shape[1]
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.num_batches_tracked is not None and norm.momentum is not None
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        norm.running_var.lerp_((variance * count / max(count - 1, 1)).to(norm.running_var), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    shift = norm.bias - mean * scale
    return torch.addcmul(shift.to(wide)[:, None, None], wide, scale.to(wide)[:, None, None]).to(x.dtype)


def dropout(layer: nn.Dropout, x: Tensor) -> Tensor:
    """Drop the elements of x (N, ...) that one process would have dropped, given the same random state and N in every process."""
    rank, world = rank_and_world_size()
    ones = torch.cat([torch.ones_like(x)] * world)  # keeps the order in memory, in which the mask is drawn
    return x * F.dropout(ones, layer.p)[rank::world]


def dropout2d(layer: nn.Dropout2d, x: Tensor) -> Tensor:
    """Drop the channels of x (N, C, H, W) that one process would have dropped, given the same random state and N in each."""
    rank, world = rank_and_world_size()
    return x * F.dropout2d(x.new_ones(world * x.shape[0], x.shape[1], 1, 1), layer.p)[rank::world]
