"""One batch shared by the processes of `torch.distributed`, so that training is what it would be in one process.

Batch statistics are those of the whole batch, a dropout mask is drawn for the whole batch by every process, and gradients
are summed. Gradients travel in one buffer of fixed order: DistributedDataParallel regroups them after its first step, so a
training of three or more processes that was interrupted would add them up in another order than one that was not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from syn4seg.errors import UserError


def rank_and_world_size() -> tuple[int, int]:
    """(number of this process, number of processes); (0, 1) where no process group is set up."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over all processes, without a gradient; `value` itself where there is only one."""
    if rank_and_world_size()[1] == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def all_reduce_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Adds up the gradients of all processes, in place."""
    if rank_and_world_size()[1] == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    buffer = all_reduce_sum(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, buffer.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def broadcast_state(module: nn.Module) -> None:
    """Gives every process the parameters and buffers of process 0."""
    if rank_and_world_size()[1] > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


@contextlib.contextmanager
def synchronize_layers(module: nn.Module) -> Iterator[None]:
    """Within the block, batch norms and dropouts of `module` act on the whole batch; names, parameters and buffers stay.

    Process r of w has the rows r, r + w, r + 2 w, ... of every batch, equally many as the others.

    Raises:
        UserError: a batch norm that cannot be shared.
    """
    if rank_and_world_size()[1] == 1:
        yield
        return
    plain: list[tuple[Any, type]] = []
    on_gpu = any(p.is_cuda for p in module.parameters())
    shared = {
        nn.BatchNorm2d: nn.SyncBatchNorm if on_gpu else SharedBatchNorm,
        nn.Dropout: SharedDropout,
        nn.Dropout2d: SharedDropout2d,
    }
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training and not _can_be_shared(part):
            raise UserError(
                f"placement.training.workers={rank_and_world_size()[1]}: the statistics of {name} ({part}) cannot be those of the "
                "whole batch; expected torch.nn.BatchNorm2d with weights, running statistics and momentum; set "
                "placement.training.workers=1"
            )
        if type(part) in shared:
            plain.append((part, type(part)))
    try:
        for part, kind in plain:
            part.__class__ = shared[kind]
            if on_gpu and kind is nn.BatchNorm2d:
                part.process_group = None
        yield
    finally:
        for part, kind in plain:
            part.__class__ = kind


def _can_be_shared(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    return type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None


class _Total(torch.autograd.Function):
    """`total` with its gradient: the loss of every process depends on what each of them put in."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return all_reduce_sum(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d over the rows of all processes, on any device; torch's own SyncBatchNorm is faster and for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, C, H, W), N the same in every process."""
        if not self.training:
            return super().forward(x)
        world = rank_and_world_size()[1]
        wide = x.to(self.weight.dtype)
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        mean, variance = mean.double(), variance.double()  # differences of squares below
        moments = _Total.apply(torch.stack([mean, variance + mean.square()])) / world
        mean, variance = moments[0], moments[1] - moments[0].square()
        count = world * x.numel() / x.shape[1]
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift.to(wide)[:, None, None], wide, scale.to(wide)[:, None, None]).to(x.dtype)


class SharedDropout(nn.Dropout):
    """Dropout whose mask one process would have drawn, given the same random state in every process."""

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, ...), N the same in every process."""
        if not self.training:
            return x
        rank, world = rank_and_world_size()
        ones = torch.cat([torch.ones_like(x)] * world)  # keeps the order in memory, in which the mask is drawn
        return x * super().forward(ones)[rank::world]


class SharedDropout2d(nn.Dropout2d):
    """The same for whole channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Of (N, C, H, W), N the same in every process."""
        if not self.training:
            return x
        rank, world = rank_and_world_size()
        return x * super().forward(x.new_ones(world * x.shape[0], x.shape[1], 1, 1))[rank::world]
