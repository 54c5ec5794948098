"""The names of `import lmjax`: all are there, all are shown, and each has a docstring and types."""

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest

import lmjax

NAMES = sorted(set(lmjax.__all__) - {"__version__"})


def test_dir_shows_the_public_names_and_no_others():
    assert dir(lmjax) == sorted(lmjax.__all__)
    assert {"run", "load", "recipe", "mesh", "token_batches", "checkpointer", "Trained"} <= set(dir(lmjax))


def test_type_checkers_see_the_same_names_from_the_same_modules():
    tree = ast.parse(Path(lmjax.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == lmjax._HOMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_what_its_module_has_with_a_docstring(name):
    value = getattr(lmjax, name)
    home = importlib.import_module(lmjax._HOMES[name])
    assert value is getattr(home, name) and inspect.getdoc(value)
    if isinstance(value, types.FunctionType):
        assert "return" in inspect.get_annotations(value)
        parameters = inspect.signature(value).parameters.values()
        assert {"VAR_KEYWORD", "VAR_POSITIONAL"}.isdisjoint(p.kind.name for p in parameters)
        assert all(p.annotation is not p.empty for p in parameters)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lmjax' has no attribute 'trian'"):
        lmjax.trian  # noqa: B018
