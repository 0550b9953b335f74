"""Order is kept, work is bounded, errors come through, with threads and on a Dask cluster."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from unalike.engine import map_in_order, read_ahead
from unalike.errors import SettingsError
from unalike.seeds import generator_for, seed_for


def square(value: int) -> int:
    return value * value


def test_results_come_in_order() -> None:
    assert list(map_in_order(square, range(50), workers=4)) == [n * n for n in range(50)]


def test_only_a_bounded_number_is_taken_ahead() -> None:
    taken = []
    results = map_in_order(square, (taken.append(n) or n for n in range(1000)), workers=2)
    next(results)
    assert len(taken) <= 10
    results.close()


def test_errors_come_through() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda n: 1 // n, [1, 0, 2], workers=2))


@pytest.mark.filterwarnings("ignore")  # distributed warns about its own shutdown
def test_a_dask_cluster_gives_the_same() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        results = list(map_in_order(square, range(20), scheduler=cluster.scheduler_address))
    assert results == [n * n for n in range(20)]


def test_a_missing_scheduler_is_an_error_in_one_line() -> None:
    with pytest.raises(SettingsError, match="no Dask scheduler answers"):
        list(map_in_order(square, [1], scheduler="nonsense://nowhere"))


def test_read_ahead_yields_the_same_and_stops_when_left() -> None:
    assert list(read_ahead(range(7))) == list(range(7))
    assert list(read_ahead(())) == []
    taken: list[int] = []
    for value in read_ahead(taken.append(n) or n for n in range(1000)):
        if value == 3:
            break
    assert len(taken) <= 8


def test_iterators_left_behind_can_be_collected_in_a_worker_thread() -> None:
    """The garbage collector may close a generator in one of its own threads, which must not wait for itself."""
    for _ in range(20):
        left = map_in_order(square, range(1000), workers=2)
        next(left)
        closer = threading.Thread(target=left.close)
        closer.start()
        closer.join(timeout=30)
        assert not closer.is_alive()


def test_read_ahead_passes_errors_on() -> None:
    def broken():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(read_ahead(broken()))


def test_streams_are_named_and_independent() -> None:
    assert generator_for(0, "a").random() == generator_for(0, "a").random()
    values = [generator_for(*key).random() for key in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))]
    assert len(set(values)) == 4
    assert 0 <= seed_for(2**40, "x", 7) < 2**63
    draws = np.array([generator_for(0, "uniform", index).random() for index in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03
