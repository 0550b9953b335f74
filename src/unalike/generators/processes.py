"""One process or several (``accelerate launch``): who writes, who waits, and on which device each works.

Hugging Face Accelerate starts the processes and averages their gradients. Precision is not its business here: the
network computes in `compute_in`, alike with and without a launcher.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from unalike import devices
from unalike.errors import SettingsError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """The processes that work together; ``place`` is the device of this one."""

    accelerator: Accelerator
    place: torch.device

    @property
    def count(self) -> int:
        """Number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """Number of this one, from 0."""
        return int(self.accelerator.process_index)

    @property
    def main(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th item, from this process's number on."""
        return items[self.rank :: self.count]

    def wait(self) -> None:
        """Wait for all the others."""
        self.accelerator.wait_for_everyone()

    def agree(self, value: bool) -> bool:
        """What the main process says, in all."""
        if self.count == 1:
            return value
        said = torch.tensor([int(value)], device=self.place)
        torch.distributed.broadcast(said, src=0)
        return bool(said.item())

    def first(self, work: Callable[[], object]) -> None:
        """Let the main process do ``work`` while the others wait; where it raises, they end without a word."""
        done = False
        try:
            if self.main:
                work()
            done = True
        finally:
            going = self.agree(done)
        if not going:
            raise SystemExit(1)

    @contextlib.contextmanager
    def refusing_once(self) -> Iterator[None]:
        """What all processes refuse alike in the body, a setting, the first one says; the others end without a word."""
        try:
            yield
        except SettingsError as error:
            if self.main:
                raise
            raise SystemExit(error.exit_code) from error

    def average(self, numbers: torch.Tensor) -> torch.Tensor:
        """Mean over the processes of a tensor that each has."""
        if self.count == 1:
            return numbers
        total: Any = self.accelerator.reduce(numbers, reduction="mean")
        return total  # type: ignore[no-any-return]


def join_processes(device: str) -> Processes:
    """Join the other processes, if there are any, on ``device`` (``auto``, ``cpu``, ``cuda`` or ``cuda:1``).

    Several processes take a graphics card each. Raises `SettingsError` for an unknown or missing device.
    """
    place = devices.pick_device(device)
    # The others wait while the first looks for copies or measures: that may take longer than the usual ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))
    accelerator = Accelerator(cpu=place.type == "cpu", device_placement=False, kwargs_handlers=[patience])
    if accelerator.num_processes > 1 and place.type == "cuda":
        place = accelerator.device
    return Processes(accelerator, place)
