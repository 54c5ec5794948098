"""Import and export as the commands do them: a checkpoint that loads, applies and generates, and clean refusals."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lmjax
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.cli import main
from lmjax.data.conversations import Turn, encode
from lmjax.errors import UserError
from lmjax.generate.chat import stream
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.chat_template import as_jinja
from lmjax.interop.hf_tokenizer import write_tokenizer
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel
from lmjax.optim.train_state import TrainState
from lmjax.runs.convert import export_folder, import_folder
from lmjax.settings import (
    SFT,
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    DialogueSettings,
    ModelSettings,
    Pretrain,
    TemplateSettings,
    TokenizerSettings,
)
from lmjax.settings.recipe_files import to_json
from lmjax.tokenizers.tokenizer import build_tokenizer

TEXT = ["the cat sat on the mat, the cat ate the rat\n"] * 20
SETTINGS = ModelSettings(layers=2, width=16, context=24, vocab_size=280, attention=AttentionSettings(heads=2))


@pytest.fixture
def tokenizer():
    return build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=270), TEXT)


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(LanguageModel(SETTINGS).init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path, params, tokenizer):
    """A GPT-2 folder with a tokenizer of fewer entries than the model has rows."""
    write_model(tmp_path / "hf", SETTINGS, params, eos_id=tokenizer.eos_id)
    write_tokenizer(tmp_path / "hf", tokenizer, SETTINGS.context)
    return tmp_path / "hf"


def without_tokenizer(folder):
    for file in folder.iterdir():
        if "model" not in file.name and file.name != "config.json":
            file.unlink()
    return folder


def test_the_three_commands_take_a_folder_in_and_out_again(folder, tmp_path, capsys, params, tokenizer):
    checkpoint, out = str(tmp_path / "ours"), str(tmp_path / "back")
    assert main(["import-hf", str(folder), checkpoint]) == 0
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    said = capsys.readouterr().out
    assert said == f"{checkpoint}: gpt2, {count:,} parameters, a bpe tokenizer of 270 entries\n"

    arguments = ["--prompt", "the cat", "--max-tokens", "4", "--temperature", "0", "--top", "5", "--json"]
    assert main(["generate", checkpoint, *arguments]) == 0
    completion = json.loads(capsys.readouterr().out)
    row = [*tokenizer.encode("the cat"), *completion["tokens"]]
    logits = np.asarray(lmjax.load(checkpoint).apply([row]))[0, :, :270]
    first = len(row) - 1 - len(completion["tokens"])
    assert completion["tokens"] == logits[first:-1].argmax(-1).tolist()
    assert [len(step) for step in completion["alternatives"]] == [5] * len(completion["tokens"])

    assert main(["export-hf", checkpoint, out, "--keep-rows"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{out}: gpt2 of step 0; tokenizer: a byte-level BPE"
    assert said[1].startswith("rows 270 to 279 of the table, which no token has, are written: ")
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "back", folder))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    for name in ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name


def test_an_imported_model_is_the_folder_s_model(folder, tmp_path, params, tokenizer):
    import_folder(folder, tmp_path / "ours")
    trained = lmjax.load(tmp_path / "ours")
    assert trained.recipe.model == trained.model.settings == read_model(folder).settings
    assert trained.tokenizer.encode("the rat") == tokenizer.encode("the rat")
    for loaded, given in zip(jax.tree.leaves(trained.params), jax.tree.leaves(params), strict=True):
        assert np.asarray(loaded).tobytes() == given.tobytes()


def test_a_folder_without_a_tokenizer_applies_and_says_what_to_do(folder, tmp_path, capsys):
    message = import_folder(without_tokenizer(folder), tmp_path / "ours")
    assert "no tokenizer" in message
    assert "to generate text, put tokenizer.json, with tokenizer_config.json" in message
    trained = lmjax.load(tmp_path / "ours")
    assert trained.apply(np.zeros((1, 5), np.int32)).shape == (1, 5, 280)
    assert main(["generate", str(tmp_path / "ours"), "--prompt", "a"]) == 2
    assert "it has no tokenizer" in capsys.readouterr().err
    assert export_folder(tmp_path / "ours", tmp_path / "back").endswith("tokenizer: none")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["eos_token_id"] is None


def test_a_tokenizer_larger_than_the_table_is_refused(tmp_path, params, tokenizer):
    small = ModelSettings(layers=2, width=16, context=24, vocab_size=268, attention=AttentionSettings(heads=2))
    cut = params | {"tokens": params["tokens"][:268]}
    write_model(tmp_path / "hf", small, cut)
    write_tokenizer(tmp_path / "hf", tokenizer, 24)
    with pytest.raises(UserError, match=r"its tokenizer has 270 entries: expected at most the 268 rows"):
        import_folder(tmp_path / "hf", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


UNREAD = {"_model_name_or_path": "somewhere", "unk_token_id": 0}  # as transformers 5 writes of a GGUF file


def test_other_ends_and_beginnings_of_text_are_told(folder, tmp_path, tokenizer):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 7, "bos_token_id": 3, **UNREAD}))
    message = import_folder(folder, tmp_path / "ours")
    assert f"eos_token_id = 7; lmjax ends a text with {tokenizer.eos_id}" in message
    assert "bos_token_id = 3; lmjax puts no token before a prompt" in message
    assert "_model_name_or_path, a private field, was not read" in message and "unk_token_id" not in message


def test_nothing_is_written_over_and_nothing_half_written(folder, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    assert main(["import-hf", str(folder), str(tmp_path / "taken")]) == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
    (folder / "model.safetensors").write_bytes(b"")
    assert main(["import-hf", str(folder), str(tmp_path / "ours")]) == 2
    assert "model.safetensors: expected a whole safetensors file" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "taken"]


def test_an_empty_folder_is_as_good_as_none(folder, tmp_path):
    for call, source in ((import_folder, folder), (export_folder, tmp_path / "import_folder")):
        (tmp_path / call.__name__).mkdir()
        call(source, tmp_path / call.__name__, **({"keep_rows": True} if call is export_folder else {}))
    assert (tmp_path / "export_folder" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/ours: cannot be written: Not a directory"):
        import_folder(folder, tmp_path / "file" / "ours")


def test_a_model_that_no_folder_holds_is_refused_and_leaves_nothing(tmp_path, params, tokenizer):
    banded = dataclasses.replace(SETTINGS.attention, pattern=("dense", "banded"), band=4)
    recipe = Pretrain(
        model=dataclasses.replace(SETTINGS, attention=banded),
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=270),
        data=DataSettings(sequence_length=24),
    )
    params = jax.eval_shape(LanguageModel(recipe.model).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), params)
    tokenizer.save(tmp_path / "tokenizer")
    options = {"recipe_json": to_json(recipe), "tokenizer_folder": tmp_path / "tokenizer", "report": print}
    with Checkpointer(tmp_path / "ours", CheckpointSettings(), **options) as checkpointer:
        checkpointer.save(TrainState(np.int32(3), params, {}), 3, {})
    with pytest.raises(UserError, match=r"model\.attention\.pattern = \('dense', 'banded'\): expected \('dense',\)"):
        export_folder(tmp_path / "ours", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "tokenizer"]


def test_rows_that_no_token_has_are_left_out_of_an_export_unless_asked_for(folder, tmp_path, capsys, params):
    import_folder(folder, tmp_path / "ours")
    assert main(["export-hf", str(tmp_path / "ours"), str(tmp_path / "cut")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "rows 270 to 279 of the table, which no token has, are left out; --keep-rows keeps them"
    cut = read_model(tmp_path / "cut")
    assert cut.settings == dataclasses.replace(SETTINGS, vocab_size=270)
    np.testing.assert_array_equal(cut.params["tokens"], params["tokens"][:270])
    tokens = [[1, 2, 269, 7]]
    import_folder(tmp_path / "cut", tmp_path / "again")
    whole, again = (lmjax.load(tmp_path / name).apply(tokens) for name in ("ours", "again"))
    np.testing.assert_allclose(np.asarray(whole)[..., :270], again, atol=1e-6)
    assert (np.asarray(whole)[..., 270:] == -np.inf).all()
    kept = export_folder(tmp_path / "ours", tmp_path / "kept", keep_rows=True)
    assert "rows 270 to 279 of the table, which no token has, are written" in kept
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["vocab_size"] == 280


@pytest.mark.parametrize(("value", "told"), [(np.nan, "3 of 256 entries are NaN and 0"), (-np.inf, "0 of 256 entries")])
def test_weights_that_are_not_finite_are_refused_in_and_out_by_tensor_and_number(
    folder, tmp_path, capsys, params, value, told
):
    tensors = load_file(folder / "model.safetensors")
    name = "transformer.h.1.attn.c_proj.weight"
    broken = tensors[name].copy()
    broken[1, :3] = value
    save_file(tensors | {name: broken}, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(["import-hf", str(folder), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'model.safetensors'}: {name}: {told}" in error and not (tmp_path / "ours").exists()
    kernel = params["periods"]["block_0"]["attention"]["out"]["kernel"].copy()
    kernel[1].reshape(16, 16)[1, :3] = value
    params["periods"]["block_0"]["attention"]["out"]["kernel"] = kernel
    with pytest.raises(UserError, match=f"the tensor {name}: {told}"):
        write_model(tmp_path / "out", SETTINGS, params)


def test_a_folder_s_chat_template_is_kept_and_used(folder, tmp_path, monkeypatch, capsys, tokenizer):
    path = folder / "tokenizer_config.json"
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}assistant:"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": source}))
    import_folder(folder, tmp_path / "ours")
    trained = lmjax.load(tmp_path / "ours")
    asked = [*tokenizer.encode("user: the cat"), tokenizer.eos_id, *tokenizer.encode("assistant:")]
    assert trained.turns.prompt((Turn("user", "the cat"),), tokenizer) == asked
    monkeypatch.setattr("sys.stdin", io.StringIO("the cat\n"))
    given = ["--max-tokens", "3", "--temperature", "0"]
    assert main(["chat", str(tmp_path / "ours"), *given]) == 0
    said = capsys.readouterr()
    settings = SamplingSettings(max_tokens=3, temperature=0)
    answer = "".join(stream(trained.model, trained.params, tokenizer, asked, settings))
    assert said.out == f"> {answer}\n> \n" and said.err.count("no chat template") == 0
    message = export_folder(tmp_path / "ours", tmp_path / "back")
    assert "chat template: that of the imported model" in message
    assert json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())["chat_template"] == source


def test_a_stage_s_checkpoint_talks_and_is_exported_by_the_stage_s_template(tmp_path, params, tokenizer):
    template = TemplateSettings(user="the {text}\n", assistant="cat:", answer=" {text}.")
    tokenizer.save(tmp_path / "tokenizer")
    recipe = SFT(start="pretrain", model=SETTINGS, dialogue=DialogueSettings(template=template, sequence_length=24))
    options = {"recipe_json": to_json(recipe), "tokenizer_folder": tmp_path / "tokenizer", "report": print}
    with Checkpointer(tmp_path / "ours", CheckpointSettings(), **options) as checkpointer:
        checkpointer.save(TrainState(np.int32(3), params, {}), 3, {})
    asked = encode([[Turn("user", "mat")]], template, tokenizer)[0].ids.tolist()
    assert lmjax.load(tmp_path / "ours").turns.prompt((Turn("user", "mat"),), tokenizer) == asked
    message = export_folder(tmp_path / "ours", tmp_path / "out")
    assert "chat template: that of the stage 'sft'" in message and "differ" not in message
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == as_jinja(template)
    import_folder(tmp_path / "out", tmp_path / "again")
    assert lmjax.load(tmp_path / "again").turns.prompt((Turn("user", "mat"),), tokenizer) == asked


def test_a_chat_folder_s_end_pad_and_special_tokens_go_in_and_come_out(folder, tmp_path, params):
    """The last symbol ends a text, and one more token is padding that has no row: as in published chat models."""
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=270, user_symbols=("<|im_end|>",)), TEXT)
    write_tokenizer(folder, tokenizer, SETTINGS.context)
    (folder / "lmjax_tokenizer.json").unlink()
    eos_id = tokenizer.encode("<|im_end|>")[0]
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    assert "a huggingface tokenizer of 271 entries" in import_folder(folder, tmp_path / "ours")
    trained = lmjax.load(tmp_path / "ours")
    assert (trained.tokenizer.eos_id, trained.tokenizer.pad_id) == (eos_id, 270)
    assert trained.recipe.tokenizer.kind == "huggingface"

    export_folder(tmp_path / "ours", tmp_path / "back")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / file).read_bytes() == (folder / file).read_bytes()
    for file in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "back" / file).read_text())
        assert (written["eos_token_id"], written["pad_token_id"]) == (eos_id, 270)

    cut = params | {"tokens": params["tokens"][:270]}  # a table without a row for the padding
    write_model(folder, dataclasses.replace(SETTINGS, vocab_size=270), cut, eos_id=eos_id)
    said = import_folder(folder, tmp_path / "cut")
    assert "tokenizer.json: the model has no rows for ['<|pad|>']; a text that holds one is refused" in said
    trained = lmjax.load(tmp_path / "cut")
    assert (trained.tokenizer.vocab_size, trained.tokenizer.pad_id) == (270, None)
    with pytest.raises(UserError, match=r"holds '<\|pad\|>', token 270: expected ids below 270, the rows of"):
        trained.generate("the cat<|pad|>", max_tokens=1)
