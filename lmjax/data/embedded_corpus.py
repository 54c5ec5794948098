"""The embedded corpus: English prose that is already on the machine, so that nothing is downloaded.

In: the language reference in `pydoc_data.topics` and the docstrings of installed scientific packages, read from their
sources without importing them. Out: documents, one per topic or source file, cleaned, freed of repeated paragraphs,
sorted by name and split into train and validation by a hash of the name. It differs a little from one set of package
versions to the next and is always the same for one; it is kept in the user's cache folder under those versions.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import platform
import re
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lmjax.errors import UserError, nearest
from lmjax.files import cache_folder, decode_json, read_bytes

SPLITS = ("train", "validation")
PACKAGES = ("numpy", "scipy", "jax", "optax", "flax")  # all required by lmjax; by far the most prose for their size

_VALIDATION_PERCENT = 5
_SKIPPED = frozenset({"tests", "test", "testing", "conftest", "_vendored", "vendored", "_external", "externals"})
_SHORTEST_PARAGRAPH = 16  # characters
_SHORTEST_DOCUMENT = 200  # characters
_LEAST_PROSE = 0.80  # letters and blanks among a paragraph's characters
_SHINGLE = 4  # words
_MOST_REPEATED = 0.6  # shingles of a paragraph that earlier paragraphs already had
_RULE = re.compile(r"\s*[-=~^*#+.|_ ]{3,}\s*")  # a line that only underlines a heading or draws a table
_WORD = re.compile(r"[a-z]+")
_QUOTED = re.compile(rb'"""(.*?)"""', re.DOTALL)
_LEAST_QUOTED = 0.1  # of a source's bytes in triple quotes; with fewer, parsing it costs more time than it gives text
_LEAST_TEXT = 3_000_000  # characters, both splits together


def embedded_corpus(split: str) -> list[str]:
    """The documents of "train" or "validation", about 5% of them, sorted by name.

    The first call for a set of package versions takes some seconds; later ones read the cache, which is
    `$XDG_CACHE_HOME/lmjax` or `~/.cache/lmjax`.

    Raises:
      UserError: `split` is neither of the two.
    """
    if split not in SPLITS:
        raise UserError(f"source.split = {split!r}: expected one of {SPLITS}; {nearest(split, SPLITS)}")
    return [text for name, text in _named_documents() if split_of(name) == split]


def split_of(name: str) -> str:
    """The split of a document by its name alone, so that it stays where it is when others come and go."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "validation" if bucket < _VALIDATION_PERCENT else "train"


@cache
def _named_documents() -> list[tuple[str, str]]:
    path = cache_folder() / f"corpus-{_versions_key()}.json"
    if (cached := _read_cache(path)) is not None:
        return cached
    documents = build_documents()
    _write_cache(path, documents)
    return documents


def build_documents() -> list[tuple[str, str]]:
    """The (name, text) pairs of both splits, sorted by name, without the cache.

    Raises UserError where the packages are installed without their sources, so that there is little to read.
    """
    documents = list(_without_repeats(sorted(itertools.chain(_topics(), _docstrings()))))
    size = sum(len(text) for _, text in documents)
    if size < _LEAST_TEXT:
        raise UserError(
            f"the embedded corpus: expected {_LEAST_TEXT:,} characters in the sources of {', '.join(PACKAGES)}, found "
            f"{size:,}; install these packages with their .py files, or give data.train a source of your own"
        )
    return documents


def _topics() -> Iterator[tuple[str, list[str]]]:
    import pydoc_data.topics  # half a megabyte that only the first run needs

    for name, text in pydoc_data.topics.topics.items():
        yield f"python.{name}", _paragraphs(text)


def _docstrings() -> Iterator[tuple[str, list[str]]]:
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are many small objects without cycles: collecting triples the time
    try:
        for package in PACKAGES:
            spec = importlib.util.find_spec(package)
            for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
                for path in sorted(folder.rglob("*.py")):
                    inside = path.relative_to(folder).with_suffix("").parts
                    if not _SKIPPED.intersection(inside):
                        texts = _source_docstrings(path.read_bytes())
                        yield ".".join((package, *inside)), [p for text in texts for p in _paragraphs(text)]
    finally:
        if collecting:
            gc.enable()


def _source_docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in the order of the source."""
    if sum(map(len, _QUOTED.findall(source))) < _LEAST_QUOTED * len(source):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except SyntaxError:  # templates, and syntax newer than this Python: no document
        return
    pending: list[ast.stmt | ast.Module] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node, clean=False):
                yield text
            pending.extend(reversed(node.body))


def _paragraphs(text: str) -> list[str]:
    """The paragraphs that read as prose: no examples, tables, formulas or stubs."""
    lines = [line.rstrip() for line in inspect.cleandoc(text).split("\n")]
    blocks = "\n".join(line for line in lines if not _RULE.fullmatch(line)).split("\n\n")
    return [block for block in (textwrap.dedent(block).strip("\n") for block in blocks) if _is_prose(block)]


def _is_prose(block: str) -> bool:
    if len(block) < _SHORTEST_PARAGRAPH or ">>>" in block or block.startswith("::"):
        return False
    return sum(character.isalpha() or character in " \n" for character in block) >= _LEAST_PROSE * len(block)


def _without_repeats(documents: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, str]]:
    """Drops paragraphs most of whose word shingles occurred before, and documents of which too little is left.

    Shingles are compared over both splits, so that validation paragraphs are not in train.
    """
    numbers: dict[str, int] = {}
    seen: set[tuple[int, ...]] = set()
    for name, paragraphs in documents:
        kept = []
        for paragraph in paragraphs:
            words = [numbers.setdefault(word, len(numbers)) for word in _WORD.findall(paragraph.lower())]
            shingles = {tuple(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))}
            if len(shingles & seen) <= _MOST_REPEATED * len(shingles):
                kept.append(paragraph)
                seen |= shingles
        text = "\n\n".join(kept)
        if len(text) >= _SHORTEST_DOCUMENT:
            yield name, text


def _versions_key() -> str:
    """Names the installation: the versions of Python and the packages, and this file's own text."""
    versions = [f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES]
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return hashlib.sha256("\n".join([platform.python_version(), *versions, recipe]).encode()).hexdigest()[:16]


def _read_cache(path: Path) -> list[tuple[str, str]] | None:
    """The documents of a cache file: a line with the SHA-256 of what follows, and JSON. None where there is no file."""
    if not path.parent.is_dir() or not path.exists():
        return None
    try:
        digest, _, text = read_bytes(path).partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise UserError(f"{path}: its digest does not fit what it holds")
        return [(name, text) for name, text in decode_json(text, path, list[list[str]])]
    except (UserError, ValueError) as error:
        warnings.warn(f"the cached corpus cannot be read ({error}); building it again", stacklevel=2)
        return None


def _write_cache(path: Path, documents: list[tuple[str, str]]) -> None:
    """Writes beside the final name and renames, so that a reader finds all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / path.name
            text = json.dumps(documents, ensure_ascii=True).encode("ascii")
            part.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            part.replace(path)
    except OSError as error:
        warnings.warn(f"{path}: the embedded corpus is not cached ({error}); set XDG_CACHE_HOME", stacklevel=2)
