"""A path that is a folder where a file is expected, or the other way round, is one line that names it, and exit 2."""

import os

import pytest

from lmjax.cli import main
from tests.tiny import pretrain, write_recipe


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory with a recipe, a `file`, a `folder` and recipes that are none."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "small.py", pretrain(train__steps=1))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a_folder.py").mkdir()
    (tmp_path / "latin.py").write_bytes("# caf\u00e9\ndef recipe(): ...\n".encode("latin-1"))
    (tmp_path / "nul.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "leaves_late.py").write_text("def recipe():\n    raise SystemExit('enough')\n")
    (tmp_path / "deep.py").write_text("def recipe():\n    return recipe()\n")
    (tmp_path / "other.py").write_text("class Odd:\n    pass\ndef recipe():\n    return Odd\n")
    (tmp_path / "many.py").write_text("def recipe():\n    raise ValueError('x' * 10_000)\n")
    (tmp_path / "long.py").write_text(
        "from lmjax.settings import Pretrain\nfrom lmjax.settings import *\n"
        "def recipe():\n    return Pretrain(data=DataSettings(packing='x' * 10_000))\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run small.py --workdir file", "file: cannot be written: "),
        ("run small.py --workdir file/w", "file/w: cannot be written: "),
        ("run small.py --workdir ~nosuchuser/w", "~nosuchuser/w: there is no user 'nosuchuser'"),
        ("run small.py --executable folder", "folder: Is a directory; expected a file that lmjax plan --save wrote"),
        ("run small.py --executable none", "none: No such file or directory; expected a file"),
        ("run small.py --executable file", "file: "),
        ("run a_folder.py", "a_folder.py: it is a folder; expected a recipe file"),
        ("run latin.py", "latin.py:1: byte 0xe9 is not UTF-8"),
        ("run nul.py", "nul.py"),
        ("run leaves.py", "leaves.py:2: SystemExit: 3; a recipe returns"),
        ("run leaves_late.py", "leaves_late.py:2: SystemExit: enough; a recipe returns"),
        ("run deep.py", "deep.py:2: RecursionError: "),
        ("run other.py", "other.py: recipe() returned type; return one of lmjax.settings's stages"),
        ("run many.py", "many.py:2: ValueError: xxx"),
        ("run long.py", "long.py:4: data.packing = 'xxx"),
        ("run small.py:" + "x" * 10_000, "small.py offers no sizes"),
        ("run " + "x" * 10_000, "no recipe 'xxx"),
        ("run small.py --data.packing " + "x" * 10_000, "xxx"),
        ("run small.py --data.train.0.kind text --data.train.0.path " + "x" * 10_000, "xxx"),
        ("run small.py --data.train.0.kind text --data.train.0.path ~nosuchuser/x", "there is no user 'nosuchuser'"),
        ("run small.py --name " + "x" * 10_000, "name = 'xxx"),
        ("run small.py --workdir w --" + "x" * 10_000, "xxx"),
        ("count " + "x" * 10_000, "no preset or recipe 'xxx"),
        ("report file", "file: "),
        ("report ~nosuchuser", "~nosuchuser: there is no user 'nosuchuser'"),
        ("report " + "x" * 10_000, "xxx"),
        ("generate file --prompt a", "file: no checkpoint"),
        ("tokenizer train small.py --out file", "file: "),
        ("tokenizer train small.py --out file/x", "file/x: "),
        ("data prepare small.py --out file", "file: "),
        ("data prepare small.py --out file/x", "file/x: "),
        ("plan small.py --topology v5e-1 --hlo folder", "--hlo = 'folder': expected a file"),
        ("plan small.py --topology v5e-1 --save folder", "--save = 'folder': expected a file"),
        ("plan small.py --topology v5e-1 --hlo file/x", "--hlo = 'file/x': expected a file that can be written"),
        ("import-hf file out", "file/config.json: "),
        ("import-hf folder file", "folder/config.json: "),
        ("export-hf file out", "file: "),
        ("score file file", "file: "),
    ],
    ids=lambda value: value[:60],
)
def test_a_wrong_place_or_value_is_one_short_line_and_exit_code_2(places, capsys, arguments, message):
    try:
        code = main(arguments.split())
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr().err
    assert code == 2, said[-2000:]
    assert message in said and "Traceback" not in said
    assert len(said) < 2_000


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_recipe_that_may_not_be_read_is_named(places, capsys):
    (places / "small.py").chmod(0)
    assert main(["run", "small.py"]) == 2
    assert "small.py: cannot be read (Permission denied)" in capsys.readouterr().err
