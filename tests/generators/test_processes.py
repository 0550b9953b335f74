"""Training and sampling as real processes: killed at any moment, out of disk, and several at once.

A process of the program spends seconds on imports. Here one server process imports all of it once and forks a child
for each command, before torch has run anything in parallel: a child is as fresh as a process of its own, and dies
as one.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

if __name__ != "__main__":
    from safetensors.torch import load_file

    from unalike import folders
    from unalike.cohort.store import ImageWriter, open_images

PATIENCE = 60  # seconds until a command counts as hanging
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

TINY = {
    "--device": "cpu",
    "--base-channels": "16",
    "--channel-multipliers": "1",
    "--batch-size": "4",
    "--warmup": "2",
    "--log-every": "1",
    "--timesteps": "100",
    "--precision": "float32",
    "--checkpoint-every": "0",
    "--steps": "6",
}


# The server: this file run as a script. One line of JSON in, one out.


def _serve() -> None:
    import unalike.cli
    import unalike.generators.diffusion.sample
    import unalike.generators.diffusion.train
    import unalike.runs.guard
    import unalike.runs.sample
    import unalike.runs.train
    import unalike.runs.watch  # noqa: F401

    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        orders = json.loads(line)
        children = [_fork(order) for order in orders]
        print(json.dumps(_wait(children, orders)), flush=True)  # noqa: T201
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
        if order["kill_at_event"]:
            _die_at(order["kill_at_event"], order["watched"])
        if order["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
        from unalike import cli

        code = cli.run(order["arguments"])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 71
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_at(event: int, watched: str) -> None:
    """SIGKILL just before the n-th time that a file in ``watched`` is opened, renamed, removed or made."""
    left = [event]

    def count(name: str, given: tuple[Any, ...]) -> None:
        within = any(isinstance(entry, str | os.PathLike) and watched in str(entry) for entry in given)
        # shutil.rmtree names a file by its folder's descriptor.
        if name in EVENTS and (within or (name in ("os.remove", "os.rmdir") and given[-1] != -1)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def _wait(children: list[int], orders: list[dict[str, Any]]) -> list[int]:
    """Exit codes, −signal for who was killed; 99 for who had to be stopped because it never ended."""
    began = time.monotonic()
    codes: dict[int, int] = {}
    before, kill_at = _newest(orders[0]["watched"]), None
    while len(codes) < len(children):
        for pid in set(children) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if orders[0]["kill_after"] is not None and kill_at is None and _newest(orders[0]["watched"]) > before:
            kill_at = now + orders[0]["kill_after"]
        late = now > began + PATIENCE
        if late or (kill_at is not None and now >= kill_at):
            for pid in set(children) - set(codes):  # all at once, as a scheduler does
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = 99 if late else -signal.SIGKILL
        time.sleep(0.002)
    return [codes[pid] for pid in children]


def _newest(run: str) -> int:
    """Step of the newest checkpoint, or −1."""
    place = Path(run) / "checkpoints"
    names = os.listdir(place) if place.is_dir() else []  # noqa: PTH208
    return max((int(name[-8:]) for name in names if not name.endswith(".partial")), default=-1)


class Server:
    """Runs commands of the program, each in a process of its own."""

    def __init__(self, room: Path) -> None:
        self.room = room
        environment = os.environ | {"UNALIKE_PROGRESS": "off", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(
        self,
        *arguments: str | Path,
        processes: int = 1,
        kill_after: float | None = None,
        kill_at_event: int = 0,
        watched: Path = Path(),
        largest_file: int = 0,
    ) -> tuple[list[int], list[str]]:
        """Exit code of each process, and what it said.

        ``kill_after``: all are killed so many seconds after the first new checkpoint in the folder ``watched``.
        """
        orders = []
        port = str(_free_port())
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
            order = {
                "arguments": [str(argument) for argument in arguments],
                "environment": environment if processes > 1 else {},
                "said": str(self.room / f"said-{rank}"),
                "kill_after": kill_after,
                "kill_at_event": kill_at_event,
                "watched": str(watched),
                "largest_file": largest_file,
            }
            orders.append(order)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(orders) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self._answer())
        return codes, [Path(order["said"]).read_text() for order in orders]

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight subjects of two classes in train, four held out; smooth random images."""
    out = tmp_path_factory.mktemp("cohorts") / "cohort"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("t1",), height=16, width=16, dtype=np.dtype(np.uint8))
    random = np.random.default_rng(7)
    for subject in range(12):
        coarse = random.integers(0, 255, (4, 4))
        image = np.kron(coarse, np.ones((4, 4))).astype(np.uint8)[None]
        role = "holdout" if subject >= 8 else "train"
        record = {
            "subject": f"s{subject}",
            "source": f"f{subject}",
            "slice": 0,
            "role": role,
            "label": "ab"[subject % 2],
        }
        writer.append(image, record)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    return out


@pytest.fixture(scope="module")
def whole(server: Server, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one process."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    _succeed(server.run(*_train(cohort, run)))
    return run


def _train(cohort: Path, out: Path, **settings: object) -> list[str | Path]:
    given = {"--" + name.replace("_", "-"): str(value) for name, value in settings.items()}
    return ["train", "diffusion", cohort, "--out", out, *(word for pair in (TINY | given).items() for word in pair)]


def _succeed(outcome: tuple[list[int], list[str]]) -> list[str]:
    codes, said = outcome
    assert set(codes) == {0}, "\n".join(said)
    return said


def _complaints(said: Sequence[str]) -> list[str]:
    """What the processes said but for their settings."""
    return [line for text in said for line in text.splitlines() if not line.startswith("settings: ")]


def _checkpoints(run: Path) -> list[Path]:
    return sorted(place for place in (run / "checkpoints").glob("*") if place.suffix != ".partial")


def _assert_whole(run: Path) -> int:
    """Every checkpoint by its final name can be read, and is of the step in its name; gives the newest."""
    newest = 0
    for place in _checkpoints(run):
        progress = json.loads((place / "state.json").read_text())
        assert place.name == f"step-{progress['step']:08d}"
        assert load_file(place / "state.safetensors")
        newest = progress["step"]
    return newest


def _assert_same_run(run: Path, whole: Path) -> None:
    """Weights, averages, moments and model are the same to the last bit, and nothing half is left."""
    a, b = (load_file(_checkpoints(each)[-1] / "state.safetensors") for each in (run, whole))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert np.array_equal(tensor.numpy(), b[name].numpy()), name
    contents = [folders.read_header(each, kind="run").content for each in (run, whole)]
    assert contents[0]["model_digest"] == contents[1]["model_digest"]
    assert not list(run.rglob("*.partial"))


# Killed


def test_killed_at_ten_random_moments_it_resumes_and_ends_equal(server: Server, cohort: Path, tmp_path: Path) -> None:
    settings = {"steps": 30, "base_channels": 8}
    _succeed(server.run(*_train(cohort, tmp_path / "whole", **settings)))
    run, random = tmp_path / "run", np.random.default_rng(1)
    killed, newest = 0, 0
    for _ in range(10):
        codes, said = server.run(*_train(cohort, run, **settings), kill_after=random.uniform(0, 0.03), watched=run)
        if codes == [0]:
            break
        assert codes == [-signal.SIGKILL], said
        killed += 1
        now = _assert_whole(run)
        assert now > newest  # it went on, and nothing that was finished is lost
        newest = now
    else:
        _succeed(server.run(*_train(cohort, run, **settings)))
    assert killed
    _assert_same_run(run, tmp_path / "whole")


def test_killed_before_its_nth_file_operation_it_resumes_and_ends_equal(
    server: Server, cohort: Path, tmp_path: Path
) -> None:
    settings = {"steps": 7, "base_channels": 8, "keep": 1}
    _succeed(server.run(*_train(cohort, tmp_path / "whole", **settings)))
    run = tmp_path / "run"
    newest, killed, n = 0, 0, 0
    # Each time one later: every operation of resuming, checkpoint, model and header has its turn. Seven updates, as
    # an operation after the renaming of a checkpoint is reached only with the next one.
    while not (run / "run.json").exists() or (run / "unfinished.json").exists():
        n += 1
        codes, said = server.run(*_train(cohort, run, **settings), kill_at_event=n, watched=run)
        assert codes in ([-signal.SIGKILL], [0]), said
        killed += codes != [0]
        now = _assert_whole(run) if (run / "checkpoints").exists() else 0
        assert now >= newest
        if now > newest == settings["steps"] - 1:
            n = 0  # all over again for what follows the last checkpoint
        newest = now
    assert killed > 20
    _assert_same_run(run, tmp_path / "whole")


# A full disk


def test_a_file_that_cannot_grow_ends_in_one_line_and_the_command_goes_on(
    server: Server, cohort: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    size = (_checkpoints(whole)[-1] / "state.safetensors").stat().st_size
    codes, said = server.run(*_train(cohort, run), largest_file=size // 2)
    assert codes == [1]
    (line,) = _complaints(said)
    assert "step-00000001 cannot be written (" in line
    assert "File too large" in line
    assert "make room" in line
    assert list((run / "checkpoints").iterdir()) == []
    _succeed(server.run(*_train(cohort, run)))
    _assert_same_run(run, whole)


def test_a_model_that_cannot_be_written_ends_in_one_line_and_the_command_goes_on(
    server: Server, cohort: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    codes, _ = server.run(*_train(cohort, run), kill_at_event=1, watched=run / "model.partial")
    assert codes == [-signal.SIGKILL]  # after the last checkpoint
    codes, said = server.run(*_train(cohort, run), largest_file=8000)
    assert codes == [1]
    (line,) = _complaints(said)
    assert "File too large" in line
    assert "repeat the command" in line
    _succeed(server.run(*_train(cohort, run)))
    _assert_same_run(run, whole)


# Several processes


@pytest.fixture(scope="module")
def shared(server: Server, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `whole`, by two processes."""
    run = tmp_path_factory.mktemp("runs") / "shared"
    said = _succeed(server.run(*_train(cohort, run), processes=2))
    assert len(_complaints(said)) == 1  # the first one speaks
    return run


def _losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [loss for _, loss in sorted({line["step"]: line["loss"] for line in lines}.items())]


def _assert_close_run(run: Path, whole: Path) -> None:
    np.testing.assert_allclose(_losses(run), _losses(whole), rtol=1e-4)
    a, b = (load_file(_checkpoints(each)[-1] / "state.safetensors") for each in (run, whole))
    difference = np.concatenate([(a[n] - b[n]).numpy().ravel() for n in b if n.startswith("weights/")])
    weights = np.concatenate([b[n].numpy().ravel() for n in b if n.startswith("weights/")])
    assert np.linalg.norm(difference) < 1e-4 * np.linalg.norm(weights)


def test_two_processes_make_the_updates_of_one(whole: Path, shared: Path) -> None:
    assert folders.read_header(shared, kind="run").content["processes"] == 2
    assert len(_losses(shared)) == 6
    _assert_close_run(shared, whole)


def test_the_launcher_itself_starts_two(whole: Path, cohort: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(_free_port()), "-m", "unalike"]
    order = [*launch, *map(str, _train(cohort, tmp_path / "run"))]
    finished = subprocess.run(order, check=False, capture_output=True, timeout=4 * PATIENCE)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert folders.read_header(tmp_path / "run", kind="run").content["processes"] == 2
    _assert_close_run(tmp_path / "run", whole)


def test_two_processes_with_parts_conditions_and_changes_do_too(server: Server, cohort: Path, tmp_path: Path) -> None:
    more = {"condition": "label", "condition_dropout": 0.4, "augment": 0.4, "steps": 4}
    _succeed(server.run(*_train(cohort, tmp_path / "one", **more)))
    _succeed(server.run(*_train(cohort, tmp_path / "two", **more, accumulate=2), processes=2))
    _assert_close_run(tmp_path / "two", tmp_path / "one")


def test_two_processes_killed_together_go_on_as_two(server: Server, cohort: Path, shared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    codes = [0]
    for event in (30, 30):
        codes, said = server.run(*_train(cohort, run), processes=2, kill_at_event=event, watched=run)
        assert codes[0] == -signal.SIGKILL, said
        assert codes[1] != 99, said  # the other one does not wait for ever
        assert 0 < _assert_whole(run) < 6
    _succeed(server.run(*_train(cohort, run), processes=2))
    _assert_same_run(run, shared)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"batch_size": 5}, "batch_size = 5 cannot be shared by 2 processes with 1 parts each: give a multiple of 2"),
        ({"batch_size": 9, "accumulate": 3}, "2 processes with 3 parts each: give a multiple of 6"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_in_one_line(
    server: Server, cohort: Path, tmp_path: Path, more: dict[str, int], complaint: str
) -> None:
    codes, said = server.run(*_train(cohort, tmp_path / "run", **more), processes=2)
    assert codes == [2, 2]
    (line,) = _complaints(said)
    assert complaint in line
    assert not (tmp_path / "run").exists()  # free for a corrected command


def test_a_folder_of_somebody_else_is_refused_in_one_line(server: Server, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    codes, said = server.run(*_train(cohort, tmp_path / "run"), processes=2)
    assert codes == [2, 1]
    (line,) = _complaints(said)
    assert "not empty" in line


def test_a_full_disk_ends_both_processes(server: Server, cohort: Path, shared: Path, tmp_path: Path) -> None:
    size = (_checkpoints(shared)[-1] / "state.safetensors").stat().st_size
    codes, said = server.run(*_train(cohort, tmp_path / "run"), processes=2, largest_file=size // 2)
    assert codes[0] == 1
    assert codes[1] not in (0, 99)
    assert "make room" in said[0]


def _pixels(samples: Path) -> np.ndarray:
    opened = open_images(samples, kind="samples")
    return opened.read(opened.rows("synthetic"))


def _sample(run: Path, out: Path, *more: str | Path) -> list[str | Path]:
    settings = ["--device", "cpu", "--steps", "4", "--precision", "float32", "--batch-size", "3"]
    return ["sample", run, "--out", out, *settings, *more]


@pytest.mark.parametrize("guarded", [False, True])
def test_two_processes_draw_the_samples_of_one(
    server: Server, cohort: Path, whole: Path, tmp_path: Path, guarded: bool
) -> None:
    more = ["--count", "10", *(["--guard", cohort, "--guard-level", "0.4"] if guarded else [])]
    contents = []
    for processes in (1, 2):
        out = tmp_path / f"drawn-by-{processes}"
        _succeed(server.run(*_sample(whole, out, *more), processes=processes))
        contents.append(folders.read_header(out, kind="samples").content)
        assert len(_pixels(out)) == 10
    assert contents[0] == contents[1]
    assert len(np.unique(_pixels(tmp_path / "drawn-by-1").reshape(10, -1), axis=0)) == 10
    if guarded:
        assert contents[0]["guard"]["rejected"] > 0  # or nothing was compared


def test_a_guard_that_rejects_too_many_ends_both_processes_in_one_line(
    server: Server, cohort: Path, whole: Path, tmp_path: Path
) -> None:
    more = ["--count", "10", "--guard", cohort, "--guard-level", "0.99", "--guard-patience", "2"]
    codes, said = server.run(*_sample(whole, tmp_path / "samples", *more), processes=2)
    assert codes == [1, 1]
    (line,) = _complaints(said)
    assert "look like copies" in line


if __name__ == "__main__":
    _serve()
