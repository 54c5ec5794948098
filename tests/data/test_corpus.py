"""The embedded corpus is large enough, prose, free of repeats, split cleanly and the same every time."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from lmjax.data import embedded_corpus as corpus
from lmjax.data.embedded_corpus import build_documents, embedded_corpus, split_of
from lmjax.errors import UserError


@pytest.fixture(scope="module")
def documents():
    return build_documents()


@pytest.fixture
def cache_folder(tmp_path, monkeypatch, documents):
    """An empty cache, and a build that takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builds = []
    monkeypatch.setattr(corpus, "build_documents", lambda: builds.append(1) or documents)
    corpus._named_documents.cache_clear()
    yield tmp_path / "lmjax", builds
    corpus._named_documents.cache_clear()


def shingles(text, words=8):
    found = re.findall(r"[a-z]+", text.lower())
    return {tuple(found[i : i + words]) for i in range(len(found) - words + 1)}


def test_there_are_at_least_three_megabytes_of_documents(documents):
    assert sum(len(text.encode()) for _, text in documents) >= 3_000_000
    assert len(documents) >= 300
    assert all(len(text) >= 200 for _, text in documents)


def test_the_python_reference_and_every_package_are_in_it(documents):
    roots = {name.split(".")[0] for name, _ in documents}
    assert roots == {"python", *corpus.PACKAGES}
    assert any("conditional execution" in text for name, text in documents if name.startswith("python."))


def test_it_is_mostly_prose(documents):
    text = "".join(text for _, text in documents)
    assert sum(character.isalpha() or character.isspace() for character in text) > 0.9 * len(text)
    assert ">>>" not in text
    assert not re.search(r"^[-=]{5,}$", text, re.MULTILINE)


def test_no_document_and_no_long_paragraph_is_there_twice(documents):
    assert len({name for name, _ in documents}) == len(documents)
    assert len({text for _, text in documents}) == len(documents)
    paragraphs = [p for _, text in documents for p in text.split("\n\n") if len(p) > 80]
    squeezed = [re.sub(r"[^a-z]", "", paragraph.lower()) for paragraph in paragraphs]
    assert len(set(squeezed)) > 0.999 * len(squeezed)


def test_the_splits_share_no_document_and_hold_all_of_them(documents, cache_folder):
    train, validation = embedded_corpus("train"), embedded_corpus("validation")
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(text for _, text in documents)
    share = sum(map(len, validation)) / sum(map(len, train + validation))
    assert 0.02 < share < 0.10


def test_validation_text_is_not_in_train(documents):
    seen, shared, total = set(), 0, 0
    for name, text in documents:
        if split_of(name) == "train":
            seen |= shingles(text)
    for name, text in documents:
        if split_of(name) == "validation":
            found = shingles(text)
            shared, total = shared + len(found & seen), total + len(found)
    assert shared < 0.1 * total


def test_the_split_of_a_document_depends_on_its_name_alone():
    names = [f"package.module_{i}" for i in range(10_000)]
    share = sum(split_of(name) == "validation" for name in names) / len(names)
    assert 0.04 < share < 0.06
    assert split_of("numpy.linalg") == split_of("numpy.linalg")


def test_another_process_with_another_hash_seed_builds_the_same_without_importing_a_package(documents):
    code = "import hashlib, json, sys; from lmjax.data.embedded_corpus import PACKAGES, build_documents"
    code += "; print(hashlib.sha256(json.dumps(build_documents()).encode()).hexdigest())"
    code += "; print(sorted({*PACKAGES} & {*sys.modules}))"
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    digest = hashlib.sha256(json.dumps(documents).encode()).hexdigest()
    assert other.stdout.splitlines() == [digest, "[]"]
    assert other.stderr == ""


def test_the_second_call_reads_the_cache(documents, cache_folder):
    folder, builds = cache_folder
    first = embedded_corpus("train")
    assert [path.suffix for path in folder.iterdir()] == [".json"]
    corpus._named_documents.cache_clear()
    assert embedded_corpus("train") == first
    assert len(builds) == 1


def flipped(raw):
    """One letter of one document is another, which JSON does not tell."""
    at = raw.index(b" the ", len(raw) // 2) + 1
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


DAMAGES = {
    "cut": lambda raw: raw[:1000],
    "flipped": flipped,
    "empty": lambda raw: b"",
    "deep": lambda raw: b"[" * 100_000,
    "no texts": lambda raw: b"[[1, 2]]",
    "binary": lambda raw: bytes(range(256)),
    "signed": lambda raw: hashlib.sha256(b"[[1, 2]]").hexdigest().encode() + b"\n[[1, 2]]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_reported_and_built_again(cache_folder, damage):
    folder, builds = cache_folder
    first = embedded_corpus("validation")
    (path,) = folder.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    corpus._named_documents.cache_clear()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert embedded_corpus("validation") == first
    corpus._named_documents.cache_clear()
    assert embedded_corpus("validation") == first
    assert len(builds) == 2


def test_a_cache_that_cannot_be_written_is_reported_and_does_no_harm(cache_folder, tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.warns(UserWarning, match="not cached"):
        assert embedded_corpus("validation")


def test_other_versions_have_another_cache(monkeypatch):
    key = corpus._versions_key()
    monkeypatch.setattr(corpus.importlib.metadata, "version", lambda package: "0.0.1")
    assert corpus._versions_key() != key


def test_an_unknown_split_is_an_error_that_names_the_known_ones():
    with pytest.raises(UserError, match=r"source.split = 'valid': expected one of .*did you mean 'validation'"):
        embedded_corpus("valid")


def test_packages_without_sources_are_an_error_and_not_a_tiny_corpus(monkeypatch):
    monkeypatch.setattr(corpus, "PACKAGES", ())
    with pytest.raises(UserError, match=r"expected 3,000,000 characters .* found \d"):
        build_documents()
