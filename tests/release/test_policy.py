"""Policies: what is read, what is refused, and that what is written can be read back."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike.errors import SettingsError
from unalike.release.policy import ReleasePolicy, read_policy, write_policy


def _file(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _complaint(folder: Path, text: str) -> str:
    path = _file(folder, text)
    with pytest.raises(SettingsError) as caught:
        read_policy(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_a_file_does_not_say_is_default(tmp_path: Path) -> None:
    assert read_policy(_file(tmp_path, "")) == ReleasePolicy()
    read = read_policy(_file(tmp_path, 'copy_rate = 0\nsignatures = ["data protection officer", "head of research"]'))
    assert read == ReleasePolicy(copy_rate=0.0, signatures=("data protection officer", "head of research"))
    assert isinstance(read.copy_rate, float)


def test_the_default_policy_can_be_used() -> None:
    ReleasePolicy().check()


def test_all_problems_are_in_one_line(tmp_path: Path) -> None:
    message = _complaint(
        tmp_path, 'copy_rte = 0.1\npower = 80\nunsure = "ask"\ndecide_all = 1\nkept = true\n[gate]\na = 1\n'
    )
    for part in (
        "there is no 'copy_rte' (did you mean copy_rate?)",
        "there is no 'gate'",
        "power = 80, but give a share from 0 to 1",
        'unsure = "ask", but give remove or keep',
        "decide_all = 1, but give true or false",
        "kept = true, but give a number",
    ):
        assert part in message


def test_a_key_with_a_hyphen_is_recognized(tmp_path: Path) -> None:
    assert "did you mean false_alarm_rate?" in _complaint(tmp_path, "false-alarm-rate = 0.05")


@pytest.mark.parametrize(
    "wrong",
    [
        {"copy_rate": -0.1},
        {"copy_rate": 1.01},
        {"copy_rate": float("nan")},
        {"copy_rate": True},
        {"copy_rate": "0.01"},
        {"false_alarm_rate": 0},
        {"false_alarm_rate": 1},
        {"power": float("inf")},
        {"exposed": -1},
        {"kept": 2},
        {"second": "raw"},
        {"second": ["local"]},
        {"second_power": 1.5},
        {"unsure": "maybe"},
        {"decide_all": 0},
        {"signatures": "officer"},
        {"signatures": ("officer", " ")},
        {"signatures": (1,)},
        {"signatures": ("Officer", "officer ")},
    ],
)
def test_values_that_make_no_sense_are_refused_and_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        ReleasePolicy(**wrong).check()


@pytest.mark.parametrize("edge", [{"copy_rate": 0}, {"copy_rate": 1}, {"kept": 0}, {"power": 1}, {"exposed": 1.0}])
def test_the_ends_of_the_range_are_allowed(edge: dict[str, Any]) -> None:
    ReleasePolicy(**edge).check()


def test_files_that_are_no_toml(tmp_path: Path) -> None:
    assert "no TOML file" in _complaint(tmp_path, "copy_rate == 1")
    (tmp_path / "policy.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="no TOML file"):
        read_policy(tmp_path / "policy.toml")
    with pytest.raises(SettingsError, match="does not exist"):
        read_policy(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_policy(tmp_path)


def test_a_written_policy_explains_every_field() -> None:
    text = write_policy(ReleasePolicy())
    lines = text.splitlines()
    for field in fields(ReleasePolicy):
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{field.name} = "))
        assert lines[place - 1].startswith("# ")
    assert set(tomllib.loads(text)) == {field.name for field in fields(ReleasePolicy)}


@given(
    copy_rate=st.floats(0, 1),
    false_alarm_rate=st.floats(1e-300, 0.99),
    decide_all=st.booleans(),
    unsure=st.sampled_from(["remove", "keep"]),
    signatures=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        max_size=3,
        unique_by=lambda role: role.strip().casefold(),
    ),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    policy = replace(ReleasePolicy(), **{**values, "signatures": tuple(values["signatures"])})
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(write_policy(policy), encoding="utf-8", newline="")
    assert read_policy(path) == policy
