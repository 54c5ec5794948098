"""Whole files, JSON of a known form, and names that cannot leave their folder."""

import errno
import os
import sys
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from lmjax.errors import UserError, shortened
from lmjax.files import (
    MalformedJsonError,
    decode_json,
    is_safe_name,
    new_file,
    parse_json,
    read_json,
    read_text,
    run_file,
    safe_name,
    sha256,
    write_whole,
)


class Entry(TypedDict):
    name: str
    size: NotRequired[int]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1', "delimiter"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5_000, "4300 digits"),
        (b'"\xff"', "0xff is not UTF-8"),
        ("", "Expecting value"),
    ],
)
def test_whatever_is_not_json_is_one_kind_of_error(text, reason):
    with pytest.raises(MalformedJsonError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ('{"a": [1, "b"]}', dict[str, list[int]], r"here: a\[1\] = 'b': expected a whole number"),
        ("[1]", dict, r"here: found \[1\]: expected an object"),
        ('{"size": 3}', Entry, "here: no field 'name'; expected a string"),
        ('[{"name": "a"}, {"name": 3}]', list[Entry], r"here: \[1\].name = 3: expected a string"),
        ("[3]", list[Entry], r"here: \[0\] = 3: expected an object"),
        ("1" + "0" * 400, float, "expected a finite number"),
        ('"c"', Literal["a", "b"], "expected 'a' or 'b'"),
        ("\n\n{", Any, "here:3: expected JSON"),
    ],
)
def test_json_of_another_form_is_refused_by_place_and_field(text, form, said):
    with pytest.raises(UserError, match=said):
        decode_json(text, "here", form)


def test_json_of_the_form_is_given_as_it_is():
    value = {"a": {"name": "x", "size": 2, "more": [1.5, None]}, "b": {"name": "y"}}
    assert decode_json('{"a": {"name": "x", "size": 2, "more": [1.5, null]}, "b": {"name": "y"}}', "here") == value
    assert decode_json('{"a": {"name": "x", "size": 2}}', "here", dict[str, Entry]) == {"a": {"name": "x", "size": 2}}


def test_a_file_that_cannot_be_read_is_a_users_mistake_with_its_path(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo \xe9\n")
    for path, said in (
        (tmp_path / "none", "none: cannot be read .No such file"),
        (tmp_path, "cannot be read .Is a directory"),
        (tmp_path / "a\0b", "cannot be read"),
        (tmp_path / "bad.txt", "bad.txt:2: byte 0xe9 is not UTF-8"),
    ):
        with pytest.raises(UserError, match=said):
            read_text(path)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_whole(path, "one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "two")
    assert path.read_text() == "one"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a", "a/b", "/dev/zero", "a\\b", "C:a", "a\0b", "a\nb", "~root", "x" * 300, "\ud800", 3, None],
)
def test_a_name_that_could_leave_its_folder_is_refused(name):
    assert not is_safe_name(name)
    with pytest.raises(UserError, match=r"manifest.json: .* one plain name"):
        safe_name(name, "manifest.json")


@pytest.mark.parametrize("name", ["tokenizer.model", "00001-of-00002.safetensors", "a b", "ünï", "...a"])
def test_plain_names_pass(name):
    assert safe_name(name, "manifest.json") == name


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("no checkpoint"), OSError(errno.ENOSPC, "full")])
def test_a_new_file_that_does_not_end_well_is_removed(tmp_path, error):
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), new_file(tmp_path / "answers.jsonl") as lines:
        lines.write("half\n")
        raise error
    assert list(tmp_path.iterdir()) == []
    with new_file(tmp_path / "answers.jsonl") as lines:
        lines.write("whole\n")
    assert (tmp_path / "answers.jsonl").read_text() == "whole\n"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("there.jsonl", r"--out .*there\.jsonl: cannot be written \(File exists\); name a new file"),
        (".", r"cannot be written \(File exists\); name a new file"),
        ("none/a.jsonl", r"cannot be written \(No such file or directory\); name a file in another folder"),
    ],
)
def test_a_new_file_is_written_over_nothing(tmp_path, place, message):
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(UserError, match=message), new_file(tmp_path / place):
        pass
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_the_digest_is_of_every_byte(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_long_value_is_shortened_in_the_middle():
    text = shortened("x" * 10_000)
    assert len(text) < 240
    assert "[9,803 characters]" in text
    assert shortened(10**5_000) == "a whole number of thousands of digits"
    assert shortened("short") == "'short'"


def test_a_message_of_ten_thousand_characters_is_cut_in_the_middle_wherever_it_is_raised():
    for value in ("x" * 10_000, "x y " * 2_500):
        message = str(UserError(f"a.json:3: field = {value}: expected a number; fix it"))
        assert len(message) < 2_000
        assert message.startswith("a.json:3: field = x") and message.endswith("expected a number; fix it")
    assert str(UserError("a.json:3: as it is")) == "a.json:3: as it is"


def test_a_python_file_is_run_as_it_is_however_quickly_it_was_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as for a user, whatever the tests' environment says
    path = tmp_path / "mine.py"
    for value in (1, 2):
        path.write_text(f"value = {value}\n")
        os.utime(path, (1e9, 1e9))
        assert run_file(path, "mine").value == value
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside a user's file"
