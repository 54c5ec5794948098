"""Which files a path means, what is left out of them, and how they are decompressed and decoded."""

import bz2
import gzip
import lzma

import pyarrow as pa
import pytest

from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import as_utf8, decompressed, find_files, list_files, plain_name, suffix_of, utf8_of
from lmjax.errors import UserError

PLAIN = "one\nzw\u00f6lf \u4e09 \U0001f600\n".encode() * 50


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture
def tree(tmp_path):
    """A function that writes files, as {name: contents or the target of a link}, and gives their folder."""

    def make(files):
        for name, contents in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(contents, bytes):
                path.write_bytes(contents)
            else:
                path.symlink_to(contents)
        return tmp_path

    return make


def names(folder, pattern="", suffixes=(".txt",)):
    found = find_files(f"{folder}/{pattern}", suffixes)
    return [str(path.relative_to(folder)) for path in found.paths], found.left_out


def test_the_suffix_is_that_of_the_data_and_not_of_the_compression():
    assert [plain_name(name) for name in ("a/B.JSONL.GZ", "c4.json.zst", "x.txt")] == ["b.jsonl", "c4.json", "x.txt"]
    assert [suffix_of(name) for name in ("a.jsonl.xz", "A.CSV", "x", "y.gz")] == [".jsonl", ".csv", "", ""]


def test_hidden_files_are_left_out_and_counted_unless_they_are_named(tree):
    hidden = {".ipynb_checkpoints/a-checkpoint.txt": b"a", "._a.txt": b"\x00\xff", ".DS_Store": b"x"}
    folder = tree({"a.txt": b"a", "sub/b.txt.gz": b"b", **hidden})
    assert names(folder) == (["a.txt", "sub/b.txt.gz"], ["3 hidden"])
    assert names(folder, "*.txt") == (["a.txt"], ["1 hidden"])
    assert names(folder, "**/*.txt") == (["a.txt"], ["3 hidden"])
    assert names(folder, "._*.txt") == (["._a.txt"], [])
    assert names(folder, "**/.ipynb*/*.txt")[0] == [".ipynb_checkpoints/a-checkpoint.txt"]
    assert names(folder, "._a.txt") == (["._a.txt"], [])
    assert names(folder / ".ipynb_checkpoints") == (["a-checkpoint.txt"], [])


def test_files_of_another_ending_are_counted(tree):
    folder = tree({"a.txt": b"a", "README.md": b"x", "B.TXT": b"b"})
    assert names(folder) == (["B.TXT", "a.txt"], ["1 of another ending"])


def test_linked_folders_are_read_once_and_circles_end(tree):
    links = {"in/loop": "..", "in/out": "../../outside", "again": "in", "c.txt": "a.txt"}
    folder = tree({"top/a.txt": b"a", "top/in/b.txt": b"b", "outside/o.txt": b"o"}) / "top"
    for name, target in links.items():
        (folder / name).symlink_to(target)
    expected = ["a.txt", "in/b.txt", "in/out/o.txt"]
    assert names(folder) == (expected, ["1 links to files read already"])
    assert names(folder, "**/*.txt") == (expected, ["1 links to files read already"])


@pytest.mark.parametrize("pattern", ["", "*.txt", "**/*.txt", "gone.txt"])
def test_a_link_that_leads_nowhere_is_named(tree, pattern):
    folder = tree({"a.txt": b"a", "gone.txt": "nowhere.txt"})
    with pytest.raises(UserError, match=r"gone\.txt: a link to 'nowhere\.txt', which is missing"):
        names(folder, pattern)


@pytest.mark.parametrize("pattern", ["", "*.txt", "**/*.txt", "loop.txt"])
def test_a_link_to_itself_leads_nowhere(tree, pattern):
    folder = tree({"a.txt": b"a", "loop.txt": "loop.txt"})
    with pytest.raises(UserError, match=r"loop\.txt: a link to 'loop\.txt', which is missing"):
        names(folder, pattern)


def test_a_broken_link_of_another_ending_is_counted(tree):
    folder = tree({"a.txt": b"a", "gone.md": "nowhere.md"})
    assert names(folder)[1] == ["1 broken links of another ending"]


def test_globs_take_what_exists_as_it_is_and_match_the_rest(tree):
    folder = tree({"b[1]/a.txt": b"a", "b[1]/deep/er/c.txt": b"c", "b1/no.txt": b"n", "a**b": b"s"})
    assert names(folder, "b[1]/*.txt")[0] == ["b[1]/a.txt"]
    assert names(folder, "b[1]/**")[0] == ["b[1]/a.txt", "b[1]/deep/er/c.txt"]
    assert names(folder, "b[1]/**/er/*.txt")[0] == ["b[1]/deep/er/c.txt"]
    assert names(folder, "*/no.txt")[0] == ["b1/no.txt"]
    assert names(folder, "a**b")[0] == ["a**b"]
    assert names(folder, "b[1]/*") == (["b[1]/a.txt"], ["1 folders (end the glob in /** to read them)"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("~nosuchuser/a.txt", r"source\.path = '~nosuchuser/a\.txt': there is no user"),
        ("x**y", r"source\.path = 'x\*\*y': expected a file"),
        ("a\0b", "NUL"),
        ("x" * 5000, "expected names of at most 255 bytes"),
        ("/dev/null", "expected a regular file"),
        ("nowhere/**/*.txt", "expected a file"),
    ],
)
def test_a_path_that_means_no_file_is_refused_by_its_field(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        list_files(path, (".txt",))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_compression_gives_the_bytes_back_and_tells_damage(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    packed = COMPRESS[suffix](PLAIN)
    path.write_bytes(packed)
    assert decompressed(path) == PLAIN
    path.write_bytes(packed + packed)  # what `cat` makes of two files
    assert decompressed(path) == PLAIN + PLAIN
    for damaged in (packed[:-5], packed[: len(packed) // 2], PLAIN, packed + b"trailing words"):
        path.write_bytes(damaged)
        with pytest.raises(BadRecordError, match=rf"a\.txt\{suffix}: a truncated or damaged"):
            decompressed(path)
    path.write_bytes(b"")
    assert decompressed(path) == b""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_text_with_a_byte_order_mark_is_decoded_by_it(tmp_path, encoding):
    text = PLAIN.decode()
    raw = text.encode(encoding)
    if encoding.endswith("be"):
        raw = "\ufeff".encode(encoding) + raw
    (tmp_path / "a.txt").write_bytes(raw)
    assert utf8_of(tmp_path / "a.txt")[:].decode("utf-8-sig") == text
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(raw))
    assert utf8_of(tmp_path / "a.txt.gz")[:].decode("utf-8-sig") == text


def test_damaged_or_unmarked_utf_16_is_refused_by_name():
    with pytest.raises(BadRecordError, match=r"here: damaged UTF-16-LE text"):
        as_utf8("words".encode("utf-16")[:-1], "here")
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        with pytest.raises(BadRecordError, match=r"here: looks like UTF-16 or UTF-32 without a byte order mark"):
            as_utf8("some words".encode(encoding), "here")
    sparse = b"a\0b words that hold a NUL"
    assert as_utf8(sparse, "here") == sparse
