"""The processes that torchrun starts: each computes on its share of every batch, the first one writes and prints.

With the same global batch size, losses and dropout masks match those of a single process. Everything here does nothing
where there is only one.
"""
import io
import os
import sys
from contextlib import contextmanager, redirect_stdout

import numpy as np
import torch

from data.files import UserError, one_line


def world_size():
    """Number of processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank():
    """Number of this process; 0 is the one that writes files and prints."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


@contextmanager
def joined():
    """Joins the other processes where torchrun started several; UserError where that fails."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    try:
        torch.distributed.init_process_group()      # NCCL for tensors on GPUs, gloo for those on CPUs
    except (ValueError, RuntimeError) as error:
        raise UserError(f"WORLD_SIZE is set, but this is not a process of torchrun ({one_line(error)}); "
                        "unset it, or start the script with torchrun") from error
    try:
        with redirect_stdout(sys.stdout if rank() == 0 else io.StringIO()):
            yield
    finally:
        torch.distributed.destroy_process_group()


def sum_over_processes(value):
    """The sum of a tensor over all processes, in each of them."""
    if world_size() > 1:
        torch.distributed.all_reduce(value)
    return value


def gather(values):
    """The numpy arrays of all processes, concatenated in the order of their ranks."""
    if world_size() == 1:
        return values
    shares = [None] * world_size()
    torch.distributed.all_gather_object(shares, values)
    return np.concatenate(shares)


class DropoutOfWholeBatch(torch.nn.Dropout):
    """Dropout that draws for the batch of all processes and keeps its share: what one process would draw."""

    def forward(self, values):
        if not self.training:
            return values
        whole = values.new_ones(world_size() * len(values), *values.shape[1:])
        return values * super().forward(whole).tensor_split(world_size())[rank()]


def train_together(network, optimizer):
    """Makes the optimizer's steps use the gradient of the whole batch: the mean over the processes' equal shares."""
    if world_size() == 1:
        return
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, torch.nn.Dropout):
                setattr(parent, name, DropoutOfWholeBatch(layer.p))

    def average_gradients(*_):
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(mean.view_as(gradient))
    optimizer.register_step_pre_hook(average_gradients)
