"""Several processes that share a model, and what they tell each other (torch.distributed; torchrun starts them).

Each has an index, its *rank*, and all make the same exchanges in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=10)  # that a process waits for the others in one exchange
Value = TypeVar("Value")


@dataclass(frozen=True)
class Process:
    """One of `size` processes; `index` counts from 0."""

    index: int
    size: int

    @property
    def first(self) -> bool:
        """Whether this is the process that decides, and that talks to a person."""
        return self.index == 0

    def own(self, n: int) -> range:
        """Which of n things are this process's. The last has fewer where they are not divided evenly."""
        most = -(-n // self.size)
        return range(min(n, self.index * most), min(n, (self.index + 1) * most))

    def from_first(self, values: Tensor) -> Tensor:
        """The same tensor, with the values that it has in the first process. The host does not wait."""
        dist.broadcast(values, 0)
        return values

    def agreed(self, value: Value) -> Value:
        """What the first process gives here, in every process; anything that can be pickled."""
        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def least(self, number: int) -> int:
        """The least of what the processes give."""
        numbers: list[int] = [0] * self.size
        dist.all_gather_object(numbers, number)
        return min(numbers)

    def finish(self) -> None:
        """Wait until all have come so far, and their devices too."""
        dist.barrier()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()


def join(device: torch.device) -> tuple[int, int]:
    """Join the processes that torchrun has started. Returns this one's index and how many there are.

    device: of this process: a card of its own, or the CPU
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    return dist.get_rank(), dist.get_world_size()


def all_reduce(x: Tensor) -> Tensor:
    """The same tensor, which then holds the sum over all processes: the same bits in each."""
    if torch.compiler.is_compiling():
        _all_reduce(x)
    else:
        dist.all_reduce(x)
    return x


# For the compiler an operator without an inside.
@torch.library.custom_op("writing_in_the_margins::all_reduce", mutates_args=("x",))
def _all_reduce(x: Tensor) -> None:
    dist.all_reduce(x)


@_all_reduce.register_fake
def _(x: Tensor) -> None:
    return None
