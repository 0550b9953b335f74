"""Processes that train, or draw from a run, each forked from a server in which everything is imported already.

A process that is killed, or one of several, must be a real one; imports would take each of them seconds. The server is
this file run as a script: one line of JSON in, one out.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 120  # seconds until a process counts as hanging


def _serve(kind: str) -> None:
    import torch

    for name in ("runs.sample", "runs.train", "runs.watch", f"generators.{kind}.sample", f"generators.{kind}.train"):
        importlib.import_module(f"unalike.{name}")
    # What torch imports on first use.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    with torch.device("meta"):
        torch.zeros(1)
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        orders = json.loads(line)
        children = [_fork(order) for order in orders]
        print(json.dumps(_wait(children, orders[0])), flush=True)  # noqa: T201
    os._exit(0)  # there is nothing to tidy up


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _be_a_child(order)
    return pid


def _be_a_child(order: dict[str, Any]) -> NoReturn:
    code = 70
    try:
        said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(order["environment"])
        from unalike import runs

        work: Any = runs.sample.draw_samples if "run" in order["order"] else runs.train.train_generator
        work(**order["order"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], order: dict[str, Any]) -> list[int]:
    """Exit codes, −signal for who was killed; 99 for who had to be stopped because it never ended."""
    began = time.monotonic()
    codes: dict[int, int] = {}
    before, kill_at = newest_step(order["watched"]), None
    while len(codes) < len(children):
        for pid in set(children) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if order["kill_after"] is not None and kill_at is None and newest_step(order["watched"]) > before:
            kill_at = now + order["kill_after"]
        late = now > began + PATIENCE
        if late or (kill_at is not None and now >= kill_at):
            for pid in set(children) - set(codes):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = 99 if late else -signal.SIGKILL
        time.sleep(0.002)
    return [codes[pid] for pid in children]


def newest_step(run: str) -> int:
    """Step of the newest checkpoint, or −1."""
    place = Path(run) / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []  # noqa: PTH208
    return max((int(name[-8:]) for name in names if not name.endswith(".partial")), default=-1)


class Server:
    """Trains, or draws from a run, in processes of their own."""

    def __init__(self, room: Path, kind: str) -> None:
        self.room = room
        environment = os.environ | {"UNALIKE_PROGRESS": "off", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(
        self, order: dict[str, Any], *, processes: int = 1, kill_after: float | None = None, watched: Path = Path()
    ) -> tuple[list[int], list[str]]:
        """Exit code of each process, and what it said; ``kill_after`` counts from its first checkpoint, in seconds."""
        port, orders = str(_free_port()), []
        for rank in range(processes):
            # What a launcher gives its processes; see the documentation of torch.distributed.run.
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            about = {"said": str(self.room / f"said-{rank}"), "kill_after": kill_after, "watched": str(watched)}
            orders.append(about | {"order": order, "environment": environment if processes > 1 else {}})
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self._answer())
        return codes, [Path(about["said"]).read_text() for about in orders]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    _serve(sys.argv[1])
