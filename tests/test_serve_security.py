"""API keys: who is let in, whatever is sent; the file's changes; no open door by accident."""

from __future__ import annotations

import logging
import os

import pytest

from raybert.errors import SettingsError
from raybert.serve.security import KEYS_VARIABLE, ApiKeys, check_exposure

KEY, OTHER = "k" * 24, "0123456789abcdef"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_keys_everybody_is_let_in():
    keys = ApiKeys()
    assert not keys
    assert keys.allow(None)
    assert keys.allow("Bearer anything")


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer  {KEY} ", KEY, f"Bearer {OTHER}"])
def test_a_key_opens(header):
    assert ApiKeys([KEY, OTHER]).allow(header)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer \ud800"]
)
def test_all_else_does_not(header):
    assert not ApiKeys([KEY]).allow(header)


def test_keys_are_in_no_attribute_and_no_text():
    keys = ApiKeys([KEY])
    assert KEY not in repr(vars(keys)) + repr(keys)


def test_of_the_environment_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# the team's\n\n{OTHER}\n")
    keys = ApiKeys.from_environment({KEYS_VARIABLE: f" {KEY},, "}, file=file)
    assert keys.allow(KEY)
    assert keys.allow(OTHER)
    assert not ApiKeys.from_environment({})


def test_a_changed_file_holds_within_a_second_and_a_broken_one_changes_nothing(tmp_path, caplog):
    file, clock = tmp_path / "keys", Clock()
    file.write_text(KEY)
    keys = ApiKeys(file=file, clock=clock)
    file.write_text(OTHER)
    os.utime(file, ns=(1, 1))
    assert keys.allow(KEY)
    clock.now = 1.5
    assert keys.allow(OTHER)
    assert not keys.allow(KEY)
    for break_it in (lambda: file.write_text("short"), lambda: file.write_bytes(b"\xff" * 20), file.unlink):
        break_it()
        clock.now += 2
        with caplog.at_level(logging.WARNING):
            assert keys.allow(OTHER)
        assert "the keys before stay" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("content", "said"), [("", "holds no API key"), ("# one\n", "no API key"), ("short", "line 1")]
)
def test_a_file_that_opens_the_door_by_accident_is_refused(tmp_path, content, said):
    (tmp_path / "keys").write_text(content)
    with pytest.raises(SettingsError, match=said):
        ApiKeys(file=tmp_path / "keys")
    with pytest.raises(SettingsError, match="can't be read as a file of API keys"):
        ApiKeys(file=tmp_path / "none")


@pytest.mark.parametrize("key", ["short", "with white space in it"])
def test_a_poor_key_is_refused_and_not_told(key):
    with pytest.raises(SettingsError, match=f"{KEYS_VARIABLE}: a key of ") as caught:
        ApiKeys([key])
    assert key not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"])
def test_on_a_loopback_address_no_key_is_needed(host):
    check_exposure(host, ApiKeys(), open_to_all=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gpu-box", "localhost.example.org", ""])
def test_elsewhere_it_is_or_has_to_be_said(host):
    with pytest.raises(SettingsError, match=r"others could use it without an API key; set RAYBERT_API_KEYS"):
        check_exposure(host, ApiKeys(), open_to_all=False)
    check_exposure(host, ApiKeys([KEY]), open_to_all=False)
    check_exposure(host, ApiKeys(), open_to_all=True)
