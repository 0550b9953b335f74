"""Files of textual inversion: what torch, safetensors and diffusers write and read, and what must never be run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open

from unalike import folders
from unalike.cli import run
from unalike.errors import FolderError, InputError, SettingsError
from unalike.generators.inversion.embedding import (
    MOST_BYTES,
    MOST_VALUES,
    Embedding,
    check_fits,
    read_embedding,
    write_embedding,
)

BASE, COHORT = "sha256:" + "ab" * 32, "0123456789abcdef" * 4


def draw(count: int = 3, dimension: int = 8) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(count, dimension)).astype(np.float32)


def make(count: int = 3, dimension: int = 8) -> Embedding:
    return Embedding("<cardiomegaly>", draw(count, dimension), BASE, "stable-diffusion-2-base", 50_000, COHORT)


def fields(embedding: Embedding) -> tuple[object, ...]:
    return embedding.token, embedding.base, embedding.base_name, embedding.steps, embedding.cohort


def archive(path: Path, pickled: bytes, numbers: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as stream:
        stream.writestr("archive/data.pkl", pickled)
        for key, content in (numbers or {}).items():
            stream.writestr(f"archive/data/{key}", content)
        stream.writestr("archive/version", b"3\n")
    return path


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def storage(kind: bytes = b"FloatStorage", key: bytes = word("0"), count: bytes = b"K\x18") -> bytes:
    return b"(" + word("storage") + b"ctorch\n" + kind + b"\n" + key + word("cuda:0") + count + b"tQ"


def tensor(where: bytes = b"", offset: bytes = b"K\x00", shape: bytes = b"K\x03K\x08", stride: bytes = b"K\x08K\x01"):
    view = offset + shape + b"\x86" + stride + b"\x86\x88ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (where or storage()) + view + b"tR"


def document(value: bytes) -> bytes:
    """A former ``learned_embeds.bin``: one token."""
    return b"\x80\x02}" + word("<x>") + value + b"s."


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_embedding(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    assert message.endswith(".")
    return message


# Known files.


def test_a_file_laid_out_like_the_published_ones_is_read(tmp_path: Path) -> None:
    """Byte for byte the instructions, memo and archive of de Wilde et al.'s 64 × 1,024 embeddings."""
    values = draw(64, 1024)
    pickled = (
        b"\x80\x02}q\x00(X\x0f\x00\x00\x00string_to_tokenq\x01}q\x02X\x01\x00\x00\x00*q\x03M\x09\x01s"
        b"X\x0f\x00\x00\x00string_to_paramq\x04}q\x05h\x03ctorch._utils\n_rebuild_tensor_v2\nq\x06("
        b"(X\x07\x00\x00\x00storageq\x07ctorch\nFloatStorage\nq\x08X\x01\x00\x00\x000q\x09X\x06\x00\x00\x00cuda:0q\x0a"
        b"J\x00\x00\x01\x00tq\x0bQK\x00K@M\x00\x04\x86q\x0cM\x00\x04K\x01\x86q\x0d\x88"
        b"ccollections\nOrderedDict\nq\x0e)Rq\x0ftq\x10Rq\x11sX\x04\x00\x00\x00nameq\x12"
        b"X\x0d\x00\x00\x00healthy-50000q\x13X\x04\x00\x00\x00stepq\x14MO\xc3X\x0d\x00\x00\x00sd_checkpointq\x15"
        b"X\x08\x00\x00\x0009dd2ae4q\x16X\x12\x00\x00\x00sd_checkpoint_nameq\x17X\x08\x00\x00\x00base-emaq\x18u."
    )
    found = read_embedding(archive(tmp_path / "healthy.pt", pickled, {"0": values.tobytes()}))
    assert fields(found) == ("<healthy-50000>", "09dd2ae4", "base-ema", 49_999, "")
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, values)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_all_kinds_of_numbers_become_the_float32_that_torch_makes_of_them(tmp_path: Path, kind: torch.dtype) -> None:
    values = torch.from_numpy(draw()).to(kind)
    torch.save({"<x>": values}, tmp_path / "x.bin")
    safetensors.torch.save_file({"<x>": values}, tmp_path / "x.safetensors")
    for name in ("x.bin", "x.safetensors"):
        found = read_embedding(tmp_path / name)
        assert found.token == "<x>"
        np.testing.assert_array_equal(found.vectors, values.float().numpy())


WIDE = torch.arange(60.0).reshape(6, 10)


@pytest.mark.parametrize(
    "value",
    [WIDE.t(), WIDE[1:4], WIDE[:, 3:7], WIDE[::2, ::3], WIDE[2:3], WIDE[0].expand(4, 10), WIDE[3]],
    ids=["transposed", "rows", "columns", "every second", "one row", "repeated", "flat"],
)
def test_views_are_read_as_torch_sees_them(tmp_path: Path, value: torch.Tensor) -> None:
    torch.save({"<x>": value}, tmp_path / "x.bin")
    np.testing.assert_array_equal(read_embedding(tmp_path / "x.bin").vectors, np.atleast_2d(value.numpy()))


@pytest.mark.parametrize(
    "pack",
    [
        lambda value: {"*": value},
        lambda value: {"*": torch.nn.Parameter(value)},
        lambda value: OrderedDict({"*": value}),
        lambda value: OrderedDict({"*": torch.nn.Parameter(value.half())}),
        lambda value: torch.nn.ParameterDict({"*": torch.nn.Parameter(value)}),
    ],
    ids=["dict", "parameter", "ordered", "ordered parameter", "parameter dict"],
)
def test_all_forms_of_the_pt_layout_are_read(
    tmp_path: Path, pack: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
) -> None:
    value = torch.from_numpy(draw()).half().float()
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": pack(value),
        "name": "edema",
        "step": 70_000,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    torch.save(content, tmp_path / "other-name.pt")
    found = read_embedding(tmp_path / "other-name.pt")
    assert fields(found) == ("<edema>", "", "", 70_000, "")
    np.testing.assert_array_equal(found.vectors, value.numpy())


def test_safetensors_named_by_the_file_are_read_with_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "bone.suppressed.safetensors"
    said = {"sd_checkpoint": "09dd2ae4", "sd_checkpoint_name": "sd2", "step": "12", "cohort": "/home/anna/patients"}
    safetensors.numpy.save_file({"emb_params": draw()}, path, metadata=said)
    assert fields(read_embedding(path)) == ("<bone.suppressed>", "09dd2ae4", "sd2", 12, "")
    safetensors.numpy.save_file({"emb_params": draw()}, path, metadata={"step": "many"})
    assert fields(read_embedding(path)) == ("<bone.suppressed>", "", "", 0, "")


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    for suffix, other in ((".pt", "a.safetensors"), (".safetensors", "b.pt")):
        path = write_embedding(make(), tmp_path / f"x{suffix}").rename(tmp_path / other)
        assert fields(read_embedding(path)) == fields(make())


# Round trips, and other programs as readers.


@pytest.mark.parametrize("shape", [(1, 1), (1, 768), (3, 8), (64, 1024)])
def test_both_formats_give_back_every_bit_and_every_word(tmp_path: Path, shape: tuple[int, int]) -> None:
    first = make(*shape)
    first.vectors.flat[0] = np.float32(-0.0)
    safe = read_embedding(write_embedding(first, tmp_path / "x.safetensors"))
    both = read_embedding(write_embedding(safe, tmp_path / "x.pt"))
    again = write_embedding(both, tmp_path / "again.safetensors")
    for found in (safe, both):
        assert fields(found) == fields(first)
        assert found.vectors.tobytes() == first.vectors.tobytes()
    assert again.read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())


def test_headers_of_any_length_are_told_from_pickles(tmp_path: Path) -> None:
    lengths = set()
    for letters in range(1, 180, 7):
        token = "<" + "x" * letters + ">"
        path = write_embedding(Embedding(token, draw()), tmp_path / "x.safetensors")
        assert read_embedding(path).token == token
        lengths.add(path.read_bytes()[0])
    assert 0x80 in lengths  # as a pickle of protocol 2 begins


def test_what_is_unknown_stays_unknown(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors"):
        assert fields(read_embedding(write_embedding(Embedding("<ö x>", draw()), tmp_path / name))) == (
            "<ö x>",
            "",
            "",
            0,
            "",
        )


def test_torch_reads_the_pt_file_as_its_own(tmp_path: Path) -> None:
    path = write_embedding(make(), tmp_path / "x.pt")
    loaded = torch.load(path, weights_only=True)
    assert loaded["string_to_token"] == {"*": 265}
    assert torch.equal(loaded["string_to_param"]["*"], torch.from_numpy(draw()))
    assert (loaded["name"], loaded["step"]) == ("cardiomegaly", 50_000)
    assert (loaded["sd_checkpoint"], loaded["sd_checkpoint_name"]) == (BASE, "stable-diffusion-2-base")
    with zipfile.ZipFile(path) as stream:
        entries = {entry.filename: entry for entry in stream.infolist()}
        assert stream.testzip() is None
        assert stream.read("archive/version") == b"3\n"
    assert list(entries) == ["archive/data.pkl", "archive/data/0", "archive/version"]
    data = path.read_bytes()
    for entry in entries.values():
        name, extra = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
        assert (entry.header_offset + 30 + name + extra) % 64 == 0
        assert entry.compress_type == zipfile.ZIP_STORED


def test_safetensors_reads_the_file_and_its_metadata(tmp_path: Path) -> None:
    path = write_embedding(make(), tmp_path / "x.safetensors")
    with safe_open(path, framework="numpy") as opened:
        assert list(opened.keys()) == ["<cardiomegaly>"]
        np.testing.assert_array_equal(opened.get_tensor("<cardiomegaly>"), draw())
        assert opened.metadata() == {
            "format": "pt",
            "steps": "50000",
            "base": BASE,
            "base_name": "stable-diffusion-2-base",
            "cohort": COHORT,
        }


def test_diffusers_accepts_the_file(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = {word: place for place, word in enumerate(("<|startoftext|>", "<|endoftext|>", "a</w>", "a"))}
    small = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=CLIPTextModel(small),
        tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=16),
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=8,
            norm_num_groups=4,
            attention_head_dim=2,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(write_embedding(make(), tmp_path / "x.safetensors")))
    prompt = pipeline.maybe_convert_prompt("a <cardiomegaly>", pipeline.tokenizer)
    assert pipeline.tokenizer.encode(prompt) == [0, 2, 4, 5, 6, 1]
    learned = pipeline.text_encoder.get_input_embeddings().weight[4:].detach()
    assert torch.equal(learned, torch.from_numpy(draw()))


def test_nothing_of_torch_is_needed() -> None:
    code = "import sys, unalike.generators.inversion.embedding; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "src"})


# Writing.


def test_no_path_and_no_name_of_a_cohort_is_written(tmp_path: Path) -> None:
    for place in ("/home/anna/bases/sd2", "../bases/sd2", "~/sd2", r"C:\anna\sd2", "./sd2/", "anna/bases/sd2"):
        for name in ("x.pt", "x.safetensors"):
            path = write_embedding(replace(make(), base_name=place), tmp_path / name)
            assert read_embedding(path).base_name == "sd2"
            assert b"anna" not in path.read_bytes()
    hub = write_embedding(replace(make(), base_name="stabilityai/sd2"), tmp_path / "x.pt")
    assert read_embedding(hub).base_name == "stabilityai/sd2"
    with pytest.raises(SettingsError, match="otherwise than by its digest"):
        write_embedding(replace(make(), cohort="/home/anna/patients"), tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": "a\x1b[2Jb"}, "cannot be shown"),
        ({"token": ""}, "cannot be shown"),
        ({"token": "emb_params"}, "stands for something else"),
        ({"token": "__metadata__"}, "stands for something else"),
        ({"vectors": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"vectors": np.zeros((0, 3), np.float32)}, "holds a tensor of 0 × 3"),
        ({"vectors": np.zeros((2, 3, 4), np.float32)}, "holds a tensor of 2 × 3 × 4"),
        ({"steps": -1}, "in -1 steps"),
    ],
)
def test_what_no_file_should_hold_is_not_written(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        write_embedding(replace(make(), **change), tmp_path / "x.pt")
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must end in \.safetensors or \.pt"):
        write_embedding(make(), tmp_path / "x.bin")
    with pytest.raises(FolderError, match=r"nowhere/x\.pt cannot be written \(No such file"):
        write_embedding(make(), tmp_path / "nowhere" / "x.pt")
    (tmp_path / "x.pt").mkdir()
    (tmp_path / "x.pt" / "kept").touch()
    with pytest.raises(FolderError, match="cannot be written"):
        write_embedding(make(), tmp_path / "x.pt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]
    assert (tmp_path / "x.pt" / "kept").is_file()


# Fits a base.


def test_an_embedding_of_another_encoder_is_refused_with_the_reason() -> None:
    fitting = make(64, 1024)
    check_fits(fitting, dimension=1024, base=BASE, room=75)
    check_fits(fitting, dimension=1024, base="", room=64)
    check_fits(replace(fitting, base="09dd2ae4"), dimension=1024, base=BASE, room=75)
    with pytest.raises(
        InputError, match=r"has 1,024 numbers a vector, .* encoder 768: it is for Stable Diffusion 2\.x\."
    ):
        check_fits(fitting, dimension=768, base=BASE, room=75)
    with pytest.raises(InputError, match=r"has 1,000 numbers a vector, the base's text encoder 768\. "):
        check_fits(make(1, 1000), dimension=768, base=BASE, room=75)
    with pytest.raises(
        InputError, match=r"another text encoder, sha256:abab\w{8} \(stable-.*-base\); .* sha256:000000000000\."
    ):
        check_fits(fitting, dimension=1024, base="sha256:" + "0" * 64, room=75)
    with pytest.raises(InputError, match="has 64 vectors, the base's text encoder has room for 63"):
        check_fits(fitting, dimension=1024, base=BASE, room=63)


# What must never be run.


class Payload:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path: Path, protocol: int) -> None:
    sentinel = tmp_path / "sentinel"
    pickled = pickle.dumps({"string_to_param": Payload(sentinel)}, protocol=protocol)
    message = refusal(archive(tmp_path / "x.pt", pickled))
    assert "refused" in message
    if protocol == 2:
        assert "x.pt carries code (posix.system): refused. Ask for a safetensors file." in message
    (tmp_path / "bare.pt").write_bytes(pickled)
    refusal(tmp_path / "bare.pt")
    assert not sentinel.exists()
    pickle.loads(pickled)  # the payload is a live one
    assert sentinel.exists()


SELF = b"}q\x00" + word("<x>") + b"h\x00s"
HOSTILE = {
    "eval": (document(b"c__builtin__\neval\n" + word("1") + b"\x85R"), "carries code (__builtin__.eval)"),
    "a name of torch that is no tensor": (document(b"ctorch.hub\nload\n)R"), "carries code (torch.hub.load)"),
    "torchscript": (document(b"c__torch__\nModel\n)\x81}b"), "carries code (__torch__.Model)"),
    "a name that hides another": (document(b"ctorch\nFloatStorage x\n)R"), "carries code"),
    "a name with a command for terminals": (document(b"cos\n\x1b]0;x\x07\n)R"), "carries code (os.]0;x)"),
    "stack global": (document(word("os") + word("system") + b"\x93)R"), "may carry code"),
    "inst": (document(b"(" + word("ls") + b"ios\nsystem\n"), "may carry code"),
    "obj": (document(b"(ccollections\nOrderedDict\no"), "may carry code"),
    "newobj_ex": (document(b"ccollections\nOrderedDict\n)}\x92"), "may carry code"),
    "extension 1": (document(b"\x82\x01"), "may carry code"),
    "extension 2": (document(b"\x83\x01\x00"), "may carry code"),
    "extension 4": (document(b"\x84\x01\x00\x00\x00"), "may carry code"),
    "state of a dict": (document(b"}}" + word("__setstate__") + b"Nsb"), "may carry code"),
    "state of an ordered dict": (document(b"ccollections\nOrderedDict\n)R}b"), "may carry code"),
    "state of a class": (document(b"ctorch\nFloatStorage\n}b"), "may carry code"),
    "persistent word": (document(b"Pstorage\n"), "may carry code"),
    "another protocol": (b"\x80\x04" + document(tensor())[2:], "protocol 4"),
    "an odd escape": (document(b"ctorch\n\\d\n"), "makes no sense"),
    "an unknown instruction": (document(b"\xff"), "makes no sense"),
    "a call of a storage": (document(b"ctorch\nFloatStorage\n)R"), "makes no sense"),
    "a call of a word": (document(word("x") + b")R"), "makes no sense"),
    "a call of a tuple": (document(b"))R"), "makes no sense"),
    "an ordered dict of something": (document(b"ccollections\nOrderedDict\n]\x85R"), "makes no sense"),
    "a class that is none": (document(b"c__builtin__\nset\n)\x81"), "makes no sense"),
    "persistent number": (document(b"K\x01Q"), "makes no sense"),
    "persistent dict": (document(b"}Q"), "makes no sense"),
    "persistent tuple too short": (document(b"(" + word("storage") + b"tQ"), "makes no sense"),
    "storage of a key that is no word": (document(tensor(storage(key=b"K\x00"))), "makes no sense"),
    "storage of a tensor's name": (
        document(tensor(storage(b"FloatStorage\nctorch._utils\n_rebuild_tensor_v2"))),
        "no sense",
    ),
    "storage of a yes": (document(tensor(storage(count=b"\x88"))), "makes no sense"),
    "storage of less than none": (document(tensor(storage(count=b"J\xff\xff\xff\xff"))), "more than any embedding"),
    "storage of 2**62 numbers": (
        document(tensor(storage(count=b"\x8a\x08\0\0\0\0\0\0\0\x40"))),
        "more than any embedding",
    ),
    "storage of more than there is": (document(tensor(storage(count=b"K\x19"))), "not what it says"),
    "storage of less than there is": (
        document(tensor(storage(count=b"K\x17"), shape=b"K\x02K\x08")),
        "not what it says",
    ),
    "storage of another width": (document(tensor(storage(b"HalfStorage"))), "not what it says"),
    "storage elsewhere": (document(tensor(storage(key=word("../../../etc/passwd")))), "not what it says"),
    "a tensor of no storage": (document(tensor(b"N")), "makes no sense"),
    "a negative offset": (document(tensor(offset=b"J\xff\xff\xff\xff")), "makes no sense"),
    "an offset that reaches beyond": (document(tensor(offset=b"K\x01")), "reaches beyond"),
    "a stride that reaches beyond": (document(tensor(stride=b"K\x09K\x01")), "reaches beyond"),
    "a stride of 2**62": (document(tensor(stride=b"\x8a\x08\0\0\0\0\0\0\0\x40K\x01")), "reaches beyond"),
    "a negative stride": (document(tensor(stride=b"J\xf8\xff\xff\xffK\x01")), "makes no sense"),
    "a stride that is missing": (document(tensor(shape=b"K\x03K\x01", stride=b"K\x01\x85K\x01")), "makes no sense"),
    "a shape in yes and no": (document(tensor(shape=b"\x88\x88")), "makes no sense"),
    "a shape of nothing": (document(tensor(shape=b"K\x00K\x08")), "holds a tensor of 0 × 8"),
    "a shape of 2**31 repeated rows": (
        document(tensor(shape=b"J\xff\xff\xff\x7fK\x08", stride=b"K\x00K\x01")),
        "holds a tensor of 2,147,483,647 × 8",
    ),
    "a shape of 2**62": (
        document(tensor(shape=b"\x8a\x08\0\0\0\0\0\0\0\x40K\x08", stride=b"K\0K\x01")),
        "holds a tensor",
    ),
    "a token that is no word": (b"\x80\x02}K\x01" + tensor() + b"s.", "makes no sense"),
    "a token that is a tuple": (b"\x80\x02})" + tensor() + b"s.", "makes no sense"),
    "a token that clears the screen": (b"\x80\x02}" + word("\x1b[2J") + tensor() + b"s.", "cannot be shown"),
    "an item for a word": (b"\x80\x02" + word("x") + word("y") + b"Ns.", "makes no sense"),
    "half an item": (b"\x80\x02}(" + word("x") + b"u.", "makes no sense"),
    "no mark": (b"\x80\x02tR.", "makes no sense"),
    "an empty stack": (b"\x80\x02R.", "makes no sense"),
    "nothing": (b"\x80\x02.", "makes no sense"),
    "empty": (b"", "makes no sense"),
    "two documents": (b"\x80\x02NN.", "makes no sense"),
    "no end": (document(tensor())[:-1], "makes no sense"),
    "a word": (b"\x80\x02" + word("x") + b".", "holds no embedding"),
    "an empty dict": (b"\x80\x02}.", "holds no embedding"),
    "a token without a tensor": (document(b"N"), "holds no embedding"),
    "a token that is its own dict": (b"\x80\x02" + SELF + b".", "holds no embedding"),
    "tuples in tuples": (document(b")" + b"\x85" * 60_000), "holds no embedding"),
    "tuples of twice the same": (document(b")q\x00" + b"h\x00\x86q\x00" * 12_000), "holds no embedding"),
    "marks upon marks": (document(b"(" * 20_000), "makes no sense"),
    "a memo that is not there": (document(b"h\x07"), "makes no sense"),
    "a memo far out": (document(b"j\xff\xff\xff\xff"), "makes no sense"),
    "two tokens": (b"\x80\x02}(" + word("a") + tensor() + word("b") + tensor() + b"u.", "holds 2 tensors"),
    "parameters that are a word": (b"\x80\x02}" + word("string_to_param") + word("x") + b"s.", "holds no embedding"),
    "a module without parameters": (
        b"\x80\x02}" + word("string_to_param") + b"ctorch.nn.modules.container\nParameterDict\n)\x81s.",
        "holds no embedding",
    ),
    "a number of a million digits": (document(b"L" + b"9" * 50_000 + b"L\n"), "makes no sense"),
    "a word longer than the file": (document(b"X\xff\xff\xff\x7fabc"), "makes no sense"),
    "more instructions than any embedding": (document(b"N0" * 40_000), "more than an embedding needs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    pickled, said = HOSTILE[name]
    message = refusal(archive(tmp_path / "x.pt", pickled, {"0": draw().tobytes()}))
    assert said in message
    assert message.isprintable()


def test_the_document_that_the_hostile_ones_are_made_from_is_read(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", document(tensor()), {"0": draw().tobytes()})
    np.testing.assert_array_equal(read_embedding(path).vectors, draw())
    far = document(tensor() + b"r\xff\xff\xff\xff")  # a place far out in the memo costs nothing
    np.testing.assert_array_equal(read_embedding(archive(path, far, {"0": draw().tobytes()})).vectors, draw())


def test_files_cut_short_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for whole in (write_embedding(make(), tmp_path / "x.pt"), write_embedding(make(), tmp_path / "x.safetensors")):
        data = whole.read_bytes()
        for length in {*range(0, len(data), 11), len(data) - 1}:
            path.write_bytes(data[:length])
            refusal(path)
    pickled = document(tensor())
    for length in range(len(pickled)):
        refusal(archive(path, pickled[:length], {"0": draw().tobytes()}))


def test_files_changed_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    path = tmp_path / "x"
    numbers = {"0": draw().tobytes()}
    pickled = document(tensor())
    wholes = [write_embedding(make(), tmp_path / name).read_bytes() for name in ("x.pt", "x.safetensors")]
    for turn in range(450):
        data = bytearray((*wholes, pickled)[turn % 3])
        for place in random.integers(0, len(data), size=random.integers(1, 4)):
            data[place] = random.integers(0, 256)
        if turn % 3 == 2:
            archive(path, bytes(data), numbers)
        else:
            path.write_bytes(data)
        try:
            found = read_embedding(path)
        except InputError:
            continue
        assert found.vectors.size <= MOST_VALUES
        assert np.isfinite(found.vectors).all()


# Archives, and how much memory a file may ask for.


def test_compressed_archives_are_refused_without_unpacking(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "x.pt", document(tensor()), {"0": bytes(2**26)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**18
    tracemalloc.start()
    assert "compressed archive" in refusal(bomb)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_files_larger_than_any_embedding_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.truncate(2**32)
    tracemalloc.start()
    assert "4,294,967,296 bytes, more than any embedding" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    values = np.zeros((MOST_VALUES // 1024 + 1, 1024), np.float32)
    safetensors.numpy.save_file({"<x>": values}, path)
    assert path.stat().st_size < MOST_BYTES
    assert "holds a tensor of 1,025 × 1,024" in refusal(path)


def test_the_largest_embedding_is_read(tmp_path: Path) -> None:
    values = torch.zeros(1024, 1024, dtype=torch.float64)
    torch.save({"<x>": values}, tmp_path / "x.bin")
    assert read_embedding(tmp_path / "x.bin").vectors.shape == (1024, 1024)


def test_archives_with_files_in_odd_places_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for name in (
        "../../x",
        "archive/../../x",
        "/x",
        "archive/",
        "x",
        "archive/data/..\\x",
        "archive/data\n",
        "archive/./y",
    ):
        with zipfile.ZipFile(path, "w") as stream:
            stream.writestr("archive/data.pkl", document(tensor()))
            stream.writestr(name, draw().tobytes())
        assert "odd place" in refusal(path)
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("archive/data.pkl", document(tensor()))
        stream.writestr("other/data.pkl", document(tensor()))
    assert "odd place" in refusal(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


def test_archives_of_many_files_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", document(tensor()), {str(place): b"" for place in range(70)})
    assert "too many files" in refusal(path)


def test_archives_whose_files_overlap_or_are_broken_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", document(tensor()), {"0": draw().tobytes(), "1": draw().tobytes()})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"archive/data/1") - 46
    size = len(data)
    data[at + 20 : at + 28] = struct.pack("<II", size, size)
    path.write_bytes(data)
    assert "more than an embedding needs" in refusal(path)
    data[at + 8] |= 1  # enciphered
    path.write_bytes(data)
    refusal(path)
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("archive/version", b"3\n")
    assert "archive without data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as stream:
        stream.writestr("archive/data.pkl", document(tensor()))
        stream.writestr("archive/data/0", draw().tobytes())
        stream.writestr("archive/byteorder", b"big")
    assert "big-endian" in refusal(path)


# What is no embedding.


def test_former_torch_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save({"<x>": torch.zeros(2, 4)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert "as torch wrote before version 1.6 (2020): refused. Ask for a safetensors file." in refusal(
        tmp_path / "x.pt"
    )


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for tensors, said in (
        ({"a": draw(), "b": draw()}, "holds 2 tensors"),
        ({"clip_l": draw(), "clip_g": draw()}, "for Stable Diffusion XL"),
        ({"<x>": np.zeros((2, 3, 4), np.float32)}, "holds a tensor of 2 × 3 × 4"),
        ({"<x>": np.zeros((), np.float32)}, "a single number"),
        ({"<x>": np.zeros((2, 3), np.int64)}, "numbers of kind I64"),
        ({"<x>": np.full((2, 3), np.inf, np.float32)}, "not finite"),
        ({"<x>": np.full((2, 3), 1e300)}, "not finite"),
        ({"\x1b[2J": draw()}, "cannot be shown"),
        ({}, "holds 0 tensors"),
    ):
        safetensors.numpy.save_file(tensors, path)
        assert said in refusal(path)
    deep = b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(deep) + 1) + b"{" + deep)
    assert "damaged safetensors file" in refusal(path)
    for data in (b"", b"x", b"\x89PNG\r\n\x1a\n" + bytes(100), b"version https://git-lfs.github.com/spec/v1\n"):
        path.write_bytes(data)
        assert "neither a safetensors file nor a torch archive" in refusal(path)
    assert "does not exist" in refusal(tmp_path / "nowhere.pt")
    assert "does not exist or is not a file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "pipe")


# unalike inspect.


def test_inspect_lists_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_embedding(make(), tmp_path / "x.pt")
    assert run(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "kind": "embeddings",
        "embeddings": [
            {
                "token": "<cardiomegaly>",
                "vectors": 3,
                "dimension": 8,
                "steps": 50_000,
                "base": BASE,
                "base_name": "stable-diffusion-2-base",
                "cohort": COHORT,
                "file": "x.pt",
                "bytes": path.stat().st_size,
            }
        ],
    }
    assert run(["inspect", str(path)]) == 0
    line = (
        f"  <cardiomegaly>: 3 × 8, 50,000 steps, base stable-diffusion-2-base ({BASE}), {path.stat().st_size:,} bytes"
    )
    assert f"{line}, x.pt" in capsys.readouterr().out


def test_inspect_lists_a_folder_and_says_what_it_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_embedding(Embedding("<b>", draw()), tmp_path / "b.safetensors")
    write_embedding(replace(make(), token="<a>"), tmp_path / "a.pt")
    (tmp_path / "notes.txt").write_text("x")
    archive(tmp_path / "c\x1b[2J.pt", HOSTILE["eval"][0])
    assert run(["inspect", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["token"] for row in told["embeddings"]] == ["<a>", "<b>"]
    assert ["carries code (__builtin__.eval)" in line for line in told["refused"]] == [True]
    assert run(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "  <b>: 3 × 8, base unknown, " in printed
    assert "refused: 1\n" in printed
    assert "\x1b" not in printed


def test_inspect_fails_where_there_is_no_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive(tmp_path / "x.pt", HOSTILE["eval"][0])
    for place in (tmp_path, tmp_path / "x.pt"):
        assert run(["inspect", str(place)]) == 2
        assert "x.pt carries code (__builtin__.eval): refused." in capsys.readouterr().err
    folders.begin_folder(tmp_path / "run", kind="run", settings={})
    write_embedding(make(), tmp_path / "run" / "x.pt")
    assert run(["inspect", str(tmp_path / "run")]) == 2
    assert "unfinished" in capsys.readouterr().err
