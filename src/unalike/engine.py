"""Map over chunks, in order: threads here, Dask on a cluster. And the progress bar everybody uses."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from unalike.errors import SettingsError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int | None = None,
    processes: bool = False,
    scheduler: str | None = None,
) -> Generator[Result, None, None]:
    """Yield ``function(item)`` for each item, in order, while a bounded number is worked on ahead.

    ``processes`` picks processes instead of threads. ``scheduler`` is the address of a Dask scheduler
    (``tcp://host:8786``), whose workers must see the same files; it needs the extra ``unalike[cluster]``.
    """
    if workers is not None and workers < 1:
        raise SettingsError(f"--workers {workers}: give 1 or more.")
    with _executor(workers or os.cpu_count() or 1, processes, scheduler) as (submit, ahead):
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextmanager
def _executor(workers: int, processes: bool, scheduler: str | None) -> Iterator[tuple[Callable[..., Any], int]]:
    if scheduler:
        try:
            from distributed import Client
        except ImportError as error:
            raise SettingsError("--scheduler needs Dask: pip install 'unalike[cluster]'.") from error
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise SettingsError(f"no Dask scheduler answers at {scheduler}. Check --scheduler.") from error
        with client:
            yield lambda function, item: client.submit(function, item, pure=False), 64
        return
    pool: Executor
    if processes:
        import multiprocessing

        # "spawn": forking a process that runs threads (BLAS, torch) can deadlock.
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(workers)
    try:
        yield pool.submit, workers * 3
    finally:
        # Never wait here: a generator left behind is closed wherever the garbage collector happens to run, and a
        # worker thread that waits for itself waits for ever.
        pool.shutdown(wait=False, cancel_futures=True)


class Progress:
    """What a long task calls: ``advance(count, text)``."""

    def advance(self, count: int = 1, text: str = "") -> None:
        """Tell that ``count`` more units are done; ``text`` is shown beside the bar."""


class _Lines(Progress):
    """One line every ten seconds, for logs and pipes."""

    def __init__(self, description: str, total: int, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done, self.began = 0, time.monotonic()
        self.told = self.began

    def advance(self, count: int = 1, text: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told < 10:
            return
        self.told = now
        rate = self.done / (now - self.began)
        left = f"{(self.total - self.done) / rate:.0f} s left" if rate else "time left unknown"
        line = f"{self.description}: {self.done}/{self.total} {self.unit}, {rate:.1f}/s, {left}"
        print(f"{line}  {text}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task

    def advance(self, count: int = 1, text: str = "") -> None:
        self.bar.update(self.task, advance=count, text=text)


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[text]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, text=""))


@contextmanager
def _lines(description: str, total: int, unit: str) -> Iterator[Progress]:
    yield _Lines(description, total, unit)


def show_progress(description: str, *, total: int, unit: str) -> AbstractContextManager[Progress]:
    """Progress on stderr: a bar with time left on a terminal, else a line every ten seconds.

    Set the environment variable ``UNALIKE_PROGRESS=off`` for silence.
    """
    if os.environ.get("UNALIKE_PROGRESS") == "off":
        return _silence()
    return (_bar if sys.stderr.isatty() else _lines)(description, total, unit)


def is_first_process() -> bool:
    """Whether this process speaks: the only one, or the first of those that ``accelerate launch`` started."""
    return int(os.environ.get("RANK", "0")) == 0


def tell(line: str) -> None:
    """Say one line on stderr; the environment variable that silences progress silences this too."""
    if os.environ.get("UNALIKE_PROGRESS") != "off":
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def _silence() -> Iterator[Progress]:
    yield Progress()


def read_ahead(items: Iterable[Item], *, depth: int = 2) -> Iterator[Item]:
    """Yield the same items while a thread draws up to ``depth`` of them ahead: reading hides behind work."""
    pool = ThreadPoolExecutor(1)
    source = iter(items)
    end = object()
    waiting = deque(pool.submit(next, source, end) for _ in range(depth))
    try:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # as in `_executor`
