"""Silence of the libraries that decode: what they say of a damaged file quotes its tags, and is told once, by us."""

from __future__ import annotations

import logging
import threading
import warnings


class _Quiet:
    """No warnings, and no log of these libraries, while at least one thread is inside.

    `warnings.catch_warnings` alone would mix up the filters of threads that leave in another order than they came.
    """

    def __init__(self, *loggers: str) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()
        self._loggers = [logging.getLogger(name) for name in loggers]
        self._heard = [True for _ in loggers]
        self._nowhere = logging.NullHandler()  # without any handler, Python prints to standard error

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                self._heard = [logger.propagate for logger in self._loggers]
                for logger in self._loggers:
                    logger.propagate = False  # nor what loggers below it say
                    logger.addHandler(self._nowhere)
                    logger.disabled = True  # of nibabel, which has a handler of its own
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for logger, heard in zip(self._loggers, self._heard, strict=True):
                    logger.propagate = heard
                    logger.disabled = False
                    logger.removeHandler(self._nowhere)
                self._filters.__exit__(None, None, None)


QUIET = _Quiet("pydicom", "tifffile", "nibabel.global")
