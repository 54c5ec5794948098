"""`lmjax data prepare --shard I/N` on several machines, and `--merge`, which says what does not belong together."""

import shutil

import pytest

from lmjax.cli import main

RECIPE = """
from lmjax.settings import DataSettings, ModelSettings, Pretrain, SourceSettings, TokenizerSettings

def recipe():
    text = SourceSettings(kind="text", path={path!r}, documents="line")
    held = SourceSettings(kind="text", path={path!r})
    return Pretrain(
        tokenizer=TokenizerSettings(kind={kind!r}),
        data=DataSettings(train=(text,), validation=(held,), sequence_length=16),
        model=ModelSettings(layers=1, width=16, context=16),
    )
"""


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"the {n} cats sat on {n * n} mats\n" for n in range(100)))
    (tmp_path / "mine.py").write_text(RECIPE.format(path=str(tmp_path / "text.txt"), kind="byte"))
    return tmp_path / "mine.py"


@pytest.fixture
def prepare(recipe_file, capsys):
    """A function (folder, options) -> (exit code, what was said) of `lmjax data prepare`."""

    def call(folder, *options):
        code = main(["data", "prepare", str(recipe_file), "--out", str(folder), "--workers", "1", *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


@pytest.fixture
def shares(tmp_path, prepare):
    """A folder with the three shares of the recipe's sources."""
    for share in (1, 2, 3):
        assert prepare(tmp_path / "out", "--shard", f"{share}/3")[0] == 0
    return tmp_path / "out"


def files(folder, inside="tokens"):
    return {path.relative_to(folder): path.read_bytes() for path in (folder / inside).rglob("*") if path.is_file()}


def test_merged_shares_are_the_files_of_one_machine_and_train_in_the_same_way(tmp_path, prepare, shares):
    code, whole = prepare(tmp_path / "whole")
    assert code == 0
    code, said = prepare(shares, "--merge")
    assert code == 0, said
    assert files(shares) == files(tmp_path / "whole") and len(files(shares)) == 2 * 3
    command = said.partition("to train from them:")[2]
    assert command.replace(str(shares), str(tmp_path / "whole")) == whole.partition("to train from them:")[2]
    before = {path: path.stat().st_mtime_ns for path in shares.rglob("*.bin")}
    assert prepare(shares, "--merge")[0] == 0  # again changes nothing
    assert {path: path.stat().st_mtime_ns for path in shares.rglob("*.bin")} == before


def test_a_share_holds_its_part_of_the_lines_and_the_first_the_single_document(shares):
    found = sorted(str(path.parent.relative_to(shares / "shares")) for path in shares.glob("shares/*/*/manifest.json"))
    assert found == ["1-of-3/train-0", "1-of-3/validation-0", "2-of-3/train-0", "3-of-3/train-0"]


def test_shares_from_several_machines_are_merged_from_their_folders(tmp_path, prepare):
    for share in (1, 2):
        assert prepare(tmp_path / f"machine-{share}", "--shard", f"{share}/2")[0] == 0
    machines = [str(tmp_path / f"machine-{share}") for share in (1, 2)]
    code, said = prepare(tmp_path / "all", "--merge", *machines)
    assert code == 0, said
    assert prepare(tmp_path / "whole")[0] == 0
    assert files(tmp_path / "all") == files(tmp_path / "whole")


def test_a_finished_share_is_not_made_again(prepare, shares):
    before = {path: path.stat().st_mtime_ns for path in shares.rglob("*.bin")}
    assert prepare(shares, "--shard", "2/3")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in shares.rglob("*.bin")} == before


def test_a_missing_or_unfinished_share_is_named(prepare, shares):
    (shares / "shares" / "2-of-3" / "train-0" / "manifest.json").unlink()
    shutil.rmtree(shares / "shares" / "3-of-3")
    code, said = prepare(shares, "--merge")
    assert code == 2
    assert (
        "lacks the shares 2/3, 3/3, or they are unfinished; run lmjax data prepare with --shard 2/3 and --shard 3/3"
        in said
    )
    assert not (shares / "tokens").exists()


def test_a_share_that_is_there_twice_is_named(tmp_path, prepare, shares):
    shutil.copytree(shares / "shares" / "2-of-3", tmp_path / "copy" / "shares" / "2-of-3")
    code, said = prepare(shares, "--merge", str(shares), str(tmp_path / "copy"))
    assert code == 2
    assert "--merge: share 2/3 is there twice" in said and "leave one of them out" in said


def test_a_share_under_the_name_of_another_is_refused(prepare, shares):
    own = shares / "shares"
    shutil.rmtree(own / "3-of-3")
    shutil.copytree(own / "2-of-3", own / "3-of-3")
    code, said = prepare(shares, "--merge")
    assert code == 2
    assert "3-of-3/train-0/manifest.json: these shards were made from another source, which differs in share" in said


def test_shares_of_two_ns_are_refused(prepare, shares):
    assert prepare(shares, "--shard", "1/2")[0] == 0
    code, said = prepare(shares, "--merge")
    assert code == 2 and "expected shares of one N" in said and "N = 2" in said and "N = 3" in said


def test_a_share_of_another_corpus_is_refused(tmp_path, prepare, shares):
    text = tmp_path / "text.txt"
    kept = text.read_bytes()
    shutil.rmtree(shares / "shares" / "2-of-3")
    text.write_bytes(kept.replace(b"cats", b"dogs"))
    assert prepare(shares, "--shard", "2/3")[0] == 0
    text.write_bytes(kept)
    code, said = prepare(shares, "--merge")
    assert code == 2
    assert "2-of-3/train-0/manifest.json: these shards were made from another source, which differs in contents" in said
    assert "delete it and prepare it again" in said and not (shares / "tokens").exists()


def test_a_share_of_another_tokenizer_is_refused(tmp_path, recipe_file, prepare, shares):
    shutil.rmtree(shares / "shares" / "2-of-3")
    bpe = ["--tokenizer.kind", "bpe", "--tokenizer.vocab-size", "270"]
    assert main(["tokenizer", "train", str(recipe_file), "--out", str(tmp_path / "bpe"), *bpe]) == 0
    assert prepare(shares, "--shard", "2/3", *bpe, "--tokenizer.path", str(tmp_path / "bpe"))[0] == 0
    code, said = prepare(shares, "--merge")
    assert code == 2 and "2-of-3/train-0/manifest.json: these shards were made with tokenizer" in said


def test_a_damaged_share_is_named_and_nothing_is_merged(prepare, shares):
    path = shares / "shares" / "2-of-3" / "train-0" / "documents.bin"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 4
    path.write_bytes(raw)
    code, said = prepare(shares, "--merge")
    assert code == 2 and f"{path}: sha256" in said and "the file is damaged" in said
    assert not list(shares.glob("tokens/*/manifest.json"))


def test_a_tokenizer_that_every_share_would_train_is_refused(prepare, tmp_path, recipe_file):
    recipe_file.write_text(RECIPE.format(path=str(tmp_path / "text.txt"), kind="bpe"))
    code, said = prepare(tmp_path / "out", "--shard", "1/2")
    assert code == 2 and "tokenizer.path = '': expected a trained tokenizer, which all shares use" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--merge"], "expected folders with shares/I-of-N; prepare every share with --shard I/N first"),
        (["--merge", "/nowhere"], "--merge = '/nowhere': expected folders with shares/I-of-N"),
        (["--merge", "--shard", "1/2"], "--shard = (1, 2): expected it or --merge, not both"),
    ],
)
def test_what_cannot_be_merged_is_refused(tmp_path, prepare, options, message):
    code, said = prepare(tmp_path / "out", *options)
    assert code == 2 and message in said
