"""Weights are read from safetensors and from torch's files of both layouts, and nothing in a file is ever run."""

from __future__ import annotations

import argparse
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unalike.errors import InputError
from unalike.vision import weights
from unalike.vision.weights import MOST_PICKLE, load_weights, read_weights

LAYOUTS = {"zip": True, "former": False}


@pytest.fixture(params=LAYOUTS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """torch's own writing in either layout."""

    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=LAYOUTS[request.param])
        return tmp_path / "x.pth"

    return save


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def same(found: dict[str, torch.Tensor], expected: Any) -> bool:
    return list(found) == list(expected) and all(
        found[key].dtype == expected[key].dtype and torch.equal(found[key], expected[key]) for key in expected
    )


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_weights(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(str(path))
    assert message.endswith(".")
    return message


# What is read.


def test_a_state_dict_is_read_bit_for_bit(write: Callable[[Any], Path]) -> None:
    state = network().state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    assert same(read_weights(write(state)), state)


def test_safetensors_are_read_bit_for_bit(tmp_path: Path) -> None:
    state = dict(sorted(network().state_dict().items()))
    state["half"] = torch.ones(2, dtype=torch.bfloat16)
    save_file(state, tmp_path / "x")
    found = read_weights(tmp_path / "x")
    assert same(dict(sorted(found.items())), dict(sorted(state.items())))


KINDS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)


def test_all_kinds_of_numbers_are_read(write: Callable[[Any], Path]) -> None:
    state = {str(kind): (torch.arange(7) % 2 + (0 if kind == torch.bool else 3)).to(kind) for kind in KINDS}
    assert same(read_weights(write(state)), state)


def test_views_and_shared_numbers_are_read_as_torch_sees_them(write: Callable[[Any], Path]) -> None:
    wide = torch.arange(60.0).reshape(6, 10)
    state = {
        "all": wide,
        "transposed": wide.t(),
        "some": wide[1:5:2, ::3],
        "row": wide[3],
        "repeated": wide[0].expand(4, 10),
        "one": wide[2, 5],
        "axes": wide.reshape(2, 3, 5, 2).permute(3, 1, 0, 2),
        "parameter": nn.Parameter(wide[2:]),
    }
    assert same(read_weights(write(state)), {key: tensor.detach() for key, tensor in state.items()})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_the_weights_of_a_checkpoint_are_found_among_other_things(wrapper: str, write: Callable[[Any], Path]) -> None:
    state = network().state_dict()
    moments = {"state": {0: {"step": 3, "exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    content = {"epoch": 3, "best": 0.5, "arch": "resnet18", "optimizer": moments, "none": None, "more": (1, [2, True])}
    assert same(read_weights(write({**content, wrapper: state})), state)


def test_entries_that_are_no_tensors_are_left_out(write: Callable[[Any], Path]) -> None:
    found = read_weights(write({"a": torch.ones(2), "version": 3, "names": ["x"], "more": {"b": torch.zeros(1)}}))
    assert same(found, {"a": torch.ones(2)})


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert same(read_weights(tmp_path / "x.safetensors"), {"a": torch.ones(2)})


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def storage(kind: str = "FloatStorage", count: bytes = b"K\x06") -> bytes:
    return b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word("0") + word("cpu") + count + b"tQ"


def tensor(where: bytes = b"", shape: bytes = b"K\x02K\x03", stride: bytes = b"K\x03K\x01") -> bytes:
    view = b"K\x00" + shape + b"\x86" + stride + b"\x86\x88ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (where or storage()) + view + b"tR"


def archive(path: Path, value: bytes, numbers: bytes | None = None, **options: Any) -> Path:
    """A torch archive of one entry "a"."""
    with zipfile.ZipFile(path, "w", **options) as stream:
        stream.writestr("x/data.pkl", b"\x80\x02}" + word("a") + value + b"s.")
        stream.writestr("x/data/0", np.arange(6, dtype=np.float32).tobytes() if numbers is None else numbers)
    return path


def test_what_torch_wrote_in_2017_is_read(tmp_path: Path) -> None:
    # Python 2's words and ordered dict of pairs, the first form of tensors, parameters with flags as their state.
    old = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + b"K\x00K\x02K\x03\x86K\x03K\x01\x86tR"
    parameter = b"ctorch.nn.parameter\nParameter\n" + old + b"\x85\x81(\x88\x89}tb"
    pairs = b"ccollections\nOrderedDict\n](" + b"](U\x01a" + parameter + b"ee\x85R"
    path = archive(tmp_path / "x.pth", b"N")
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("x/data.pkl", b"\x80\x02" + pairs + b".")
        stream.writestr("x/data/0", np.arange(6, dtype=np.float32).tobytes())
    assert same(read_weights(path), {"a": torch.arange(6.0).reshape(2, 3)})


# Memory.


def test_numbers_are_mapped_not_read(tmp_path: Path) -> None:
    values = torch.zeros(2**24)  # 64 MiB
    torch.save({"a": values}, tmp_path / "x.pth")
    tracemalloc.start()
    found = read_weights(tmp_path / "x.pth")["a"]
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 2**23
    before = (tmp_path / "x.pth").read_bytes()
    found += 1
    assert (tmp_path / "x.pth").read_bytes() == before


@pytest.mark.parametrize("former", [False, True])
def test_a_row_that_is_repeated_without_end_is_refused(tmp_path: Path, former: bool) -> None:
    state = {"a": torch.zeros(1).expand(2**40)}
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not former)
    assert (tmp_path / "x.pth").stat().st_size < 2**12
    assert "holds tensors of 4,398,046,511,104 bytes" in refusal(tmp_path / "x.pth")


def test_limits_on_the_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(2**33)
    assert "8,589,934,592 bytes, more than 4,294,967,296: refused" in refusal(tmp_path / "x")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "y")
    assert "more than 2,000: refused" in refusal(tmp_path / "y", most_bytes=2000)


def test_compressed_archives_are_refused_without_unpacking(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "x", tensor(), bytes(2**26), compression=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    assert "compressed archive" in refusal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_archives_of_many_files_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PK\x03\x04" + b"PK\x01\x02" * (2**14 + 1))
    assert "too many files" in refusal(tmp_path / "x")


def test_a_list_that_is_copied_again_and_again_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = b"](" + b"".join(b"](" + word(f"{number:03}") + b"Ne" for number in range(500)) + b"eq\x00"
    copies = b"(" + pairs + b"ccollections\nOrderedDict\nh\x00\x85R" * 20 + b"t"
    path = archive(tmp_path / "x", copies + b"s" + word("b") + tensor())
    assert same(read_weights(path), {"b": torch.arange(6.0).view(2, 3)})
    monkeypatch.setattr(weights, "MOST_PICKLE", 9_000)  # the pickle has fewer bytes, 10,000 pairs are copied
    assert (len(copies)) < 9_000
    assert "more than a network needs" in refusal(path)


def test_a_pickle_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert "more than a network needs" in refusal(archive(tmp_path / "x", b"N0" * (MOST_PICKLE // 2) + tensor()))


# What must never be run.


class Payload:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.sentinel}",)


def test_a_file_that_runs_a_command_runs_nothing(write: Callable[[Any], Path], tmp_path: Path) -> None:
    path = write({"a": torch.ones(2), "b": Payload(tmp_path / "sentinel")})
    assert "carries code (posix.system): refused. Ask for a safetensors file." in refusal(path)
    assert not (tmp_path / "sentinel").exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_are_refused(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x").write_bytes(pickle.dumps({"a": Payload(tmp_path / "sentinel")}, protocol=protocol))
    refusal(tmp_path / "x")
    (tmp_path / "x").write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    refusal(tmp_path / "x")
    assert not (tmp_path / "sentinel").exists()


def test_other_classes_are_refused_by_name(write: Callable[[Any], Path]) -> None:
    state = {"a": torch.ones(2)}
    assert "argparse.Namespace" in refusal(write({"state_dict": state, "args": argparse.Namespace(lr=1)}))
    assert "torch.nn.modules" in refusal(write(network()))
    assert "numpy" in refusal(write({"state_dict": state, "best": np.float64(3)}))


HOSTILE = {
    "state of a dict": (b"}}" + word("__setstate__") + b"Nsb", "may carry code (pickle instruction BUILD)"),
    "state of a dict, and metadata": (b"}}(" + word("_metadata") + b"N" + word("x") + b"Nub", "instruction BUILD"),
    "state of a list": (b"]}b", "instruction BUILD"),
    "state of a class": (b"ctorch\nFloatStorage\n}b", "instruction BUILD"),
    "flags that are more": (tensor() + word("x") + b"\x85b", "instruction BUILD"),
    "stack global": (word("os") + word("system") + b"\x93)R", "may carry code"),
    "inst": (b"(" + word("ls") + b"ios\nsystem\n", "may carry code"),
    "a parameter of no tensor": (b"ctorch.nn.parameter\nParameter\n" + word("x") + b"\x85\x81", "makes no sense"),
    "a parameter of nothing": (b"ctorch.nn.parameter\nParameter\n)R", "makes no sense"),
    "a call of a storage": (b"ctorch\nLongStorage\n)R", "makes no sense"),
    "appending to a dict": (b"}Na", "makes no sense"),
    "appending to a word": (word("x") + b"(Ne", "makes no sense"),
    "a key that is a list": (b"}]Ns", "makes no sense"),
    "a key that is huge": (b"}\x8a\x08\0\0\0\0\0\0\0\x40Ns", "makes no sense"),
    "storage of another kind": (tensor(storage("FooStorage")), "carries code (torch.FooStorage)"),
    "storage of another width": (tensor(storage("DoubleStorage")), "not what it says"),
    "storage of too many numbers": (tensor(storage(count=b"\x8a\x08\0\0\0\0\0\0\0\x40")), "more than any network"),
    "one storage of two kinds": (tensor(storage("IntStorage")) + b"s" + word("b") + tensor(), "not what it says"),
    "a stride that reaches beyond": (tensor(stride=b"K\x04K\x01"), "reaches beyond"),
    "a negative stride": (tensor(stride=b"J\xff\xff\xff\xffK\x01"), "makes no sense"),
    "an instruction that torch never writes": (b"N0" + tensor(), "may carry code (pickle instruction POP)"),
    "no tensor": (b"N", "holds no weights"),
    "a dict that holds itself": (b"}q\x00" + word("state_dict") + b"h\x00s", "holds no weights"),
    "lists in lists": (b"]" * 60_000 + b"a" * 59_999, "holds no weights"),
    "marks upon marks": (b"(" * 60_000, "makes no sense"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    value, said = HOSTILE[name]
    assert said in refusal(archive(tmp_path / "x", value))


def test_the_file_that_the_hostile_ones_are_made_from_is_read(tmp_path: Path) -> None:
    assert same(read_weights(archive(tmp_path / "x", tensor())), {"a": torch.arange(6.0).reshape(2, 3)})


def former(
    value: bytes, *, magic: int = 0x1950A86A20F9469CFC6C, keys: Any = ("0",), numbers: bytes | None = None
) -> bytes:
    """A file of before torch 1.6 of one entry "a"."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
    heads = b"".join(pickle.dumps(each, 2) for each in (magic, 1001, machine))
    told = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()
    document = b"\x80\x02}" + word("a") + value + b"s."
    return heads + document + pickle.dumps(list(keys), 2) + (told if numbers is None else numbers)


def test_hostile_files_of_the_former_layout_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(former(tensor()))
    assert same(read_weights(path), {"a": torch.arange(6.0).reshape(2, 3)})
    told = struct.pack("<q", 6) + bytes(24)
    for data, said in (
        (former(tensor(), magic=7), "that torch did not write"),
        (former(tensor(), keys=("0", "0")), "list of numbers makes no sense"),
        (former(tensor(), keys=(0,)), "list of numbers makes no sense"),
        (former(tensor(), keys=("0", "1"), numbers=told * 2), "numbers that nothing uses"),
        (former(tensor(), keys=()), "not what it says"),
        (former(tensor(), numbers=struct.pack("<q", 7) + bytes(28)), "not what it says"),
        (former(tensor(), numbers=told[:-1]), "ends too early"),
        (former(tensor(), numbers=b""), "not what it says"),
        (former(b"cos\nsystem\n" + word("ls") + b"\x85R"), "carries code (os.system)"),
        (former(b"N"), "numbers that nothing uses"),
        (former(b"N", keys=()), "holds no weights"),
    ):
        path.write_bytes(data)
        assert said in refusal(path)


@pytest.mark.parametrize("layout", [True, False])
def test_files_cut_short_or_changed_anywhere_are_read_or_refused(tmp_path: Path, layout: bool) -> None:
    random = np.random.default_rng(3)
    torch.save({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "whole", _use_new_zipfile_serialization=layout)
    data, path = (tmp_path / "whole").read_bytes(), tmp_path / "x"
    for length in {*range(0, len(data), 23), len(data) - 1}:
        path.write_bytes(data[:length])
        refusal(path)
    for _ in range(250):
        changed = bytearray(data)
        for place in random.integers(0, len(data), size=2):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except InputError:
            continue


def test_a_number_that_changed_on_the_way_is_noticed(tmp_path: Path) -> None:
    data = bytearray(archive(tmp_path / "x", tensor()).read_bytes())
    data[data.index(np.float32(5).tobytes())] ^= 1
    (tmp_path / "x").write_bytes(data)
    assert "damaged archive (Bad CRC-32" in refusal(tmp_path / "x")


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"x", b"\x89PNG\r\n\x1a\n" + bytes(100), b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "x").write_bytes(data)
        assert "neither a safetensors file nor one of torch" in refusal(tmp_path / "x")
    save_file({}, tmp_path / "x")
    assert "holds no weights" in refusal(tmp_path / "x")
    save_file({"a": torch.ones(9)}, tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-2])
    assert "damaged safetensors file" in refusal(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x", "w") as stream:
        stream.writestr("x/version", b"3\n")
    assert "archive without data.pkl" in refusal(tmp_path / "x")
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is not a file" in refusal(tmp_path)


# Into a network.


def test_weights_are_loaded_whatever_their_kind_and_prefix(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    state = {f"module.{key}": tensor for key, tensor in source.half().state_dict().items()}
    load_weights(target, state, path="x.pth")
    expected = source.float().state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in target.state_dict().items())
    assert target[0].weight.dtype == torch.float32


def test_skipped_layers_stay_as_they_are_whatever_the_file_holds() -> None:
    source, target = network(0).state_dict(), network(1)
    before = target[3].weight.detach().clone()
    load_weights(target, source | {"3.weight": torch.ones(9), "30.x": torch.ones(1)}, path="x", skip=("3", "30"))
    assert torch.equal(target[3].weight, before)
    assert torch.equal(target[0].weight, source["0.weight"])
    del source["3.weight"], source["3.bias"], source["1.num_batches_tracked"]
    load_weights(target, source, path="x", skip=("3",))
    with pytest.raises(InputError, match=r"x holds 30\.x as 1, which the network has not\."):
        load_weights(target, source | {"30.x": torch.ones(1)}, path="x", skip=("3",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"0.weight": torch.zeros(4, 1, 3, 3)},
            r"x\.pth holds 0\.weight as 4 × 1 × 3 × 3, the network as 4 × 3 × 3 × 3\. G",
        ),
        ({"0.bias": None}, r"x\.pth holds no 0\.bias, which the network has as 4\. Give"),
        ({"9.\x1bbias": torch.zeros(())}, r"x\.pth holds 9\.bias as a single number, which the network has not\. Give"),
        ({"3.bias": torch.tensor([1.0, float("nan")])}, r"x\.pth holds numbers that are not finite \(3\.bias\)\."),
        ({"3.bias": torch.tensor([float("-inf"), 1.0])}, r"x\.pth holds numbers that are not finite \(3\.bias\)\."),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(change: dict[str, Any], said: str) -> None:
    target = network(1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    given = {key: value for key, value in (network(0).state_dict() | change).items() if value is not None}
    with pytest.raises(InputError, match=said) as caught:
        load_weights(target, given, path="x.pth")
    assert str(caught.value).isprintable()
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
