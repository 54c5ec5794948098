"""A trained model comes back from its checkpoint with the same parameters, logits, tokenizer and recipe."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.digests import write_digests
from lmjax.errors import UserError
from lmjax.generate.beam import BeamSettings
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.runs import load as module
from lmjax.runs.load import Trained
from lmjax.settings import ComputeSettings, MeshSettings, TokenizerSettings
from lmjax.stages.prepare_data import prepare
from lmjax.tokenizers.tokenizer import tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay
from tests.running import assert_same_bits


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny, train):
    """(recipe, workdir, state) of a short run with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny(tokenizer=TokenizerSettings(kind="bpe", vocab_size=270))
    return recipe, folder, train(recipe, folder)


@pytest.fixture(scope="module")
def loaded(trained):
    return lmjax.load(trained[1])


def test_parameters_recipe_step_and_tokenizer_come_back(trained):
    recipe, folder, state = trained
    loaded = lmjax.load(folder)
    assert_same_bits(loaded.params, state.params)
    assert loaded.recipe == recipe and loaded.step == 10
    made = prepare(recipe, folder, ProgressDisplay(silent=True)).tokenizer
    assert tokenizer_fingerprint(loaded.tokenizer) == tokenizer_fingerprint(made)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the cat sat")) == "the cat sat"


def test_a_workdir_a_stage_and_a_step_are_all_checkpoints(trained):
    _, folder, _ = trained
    stage = folder / "checkpoints" / "pretrain"
    assert {int(path.name) for path in stage.iterdir()} == {8, 10}
    assert [lmjax.load(path).step for path in (folder, str(stage), stage / "8")] == [10, 10, 8]


def test_apply_gives_the_logits_of_every_position(trained):
    recipe, folder, state = trained
    loaded = lmjax.load(folder)
    tokens = np.array([[5, 6, 7, 8], [9, 9, 1, 2]])
    logits = loaded.apply(tokens)
    assert logits.shape == (2, 4, 384) and logits.dtype == np.float32
    model = LanguageModel(recipe.model, ComputeSettings(scan_layers=True), "cpu")
    positions = np.broadcast_to(np.arange(4, dtype=np.int32), (2, 4))
    batch = {"tokens": tokens.astype(np.int32), "positions": positions, "segments": np.ones((2, 4), np.int32)}
    one_device = jax.tree.map(np.asarray, state.params)
    entries = loaded.tokenizer.vocab_size
    assert entries == 270
    np.testing.assert_allclose(logits[..., :entries], model.logits(one_device, batch)[..., :entries], atol=1e-6)
    changed = loaded.apply(np.array([[5, 6, 7, 200], [9, 9, 1, 2]]))
    np.testing.assert_allclose(logits[:, :3], changed[:, :3], atol=1e-6)
    assert np.abs(logits[0, 3, :entries] - changed[0, 3, :entries]).max() > 1e-3


def test_rows_of_the_table_that_no_token_has_get_no_probability(loaded):
    shares = np.asarray(jax.nn.softmax(loaded.apply([[5, 6, 7, 300]]), axis=-1))  # 300 is such a row, and may be read
    assert (shares[..., 270:] == 0).all()
    np.testing.assert_allclose(shares[..., :270].sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2, 3], r"an array of shape \(3,\): expected rows of token ids"),
        ([[1, 2], [3]], r"found \[\[1, 2\], \[3\]\] .*: expected rows of token ids, all of one length"),
        ([[1.0, 2.0]], r"of float64: expected rows of token ids"),
        ([[True]], r"of bool: expected rows of token ids"),
        ([["a"]], r"expected rows of token ids.* a text becomes ids by tokenizer\.encode"),
        ("the cat", r"expected rows of token ids"),
        (None, r"expected rows of token ids"),
        ([], r"found none: expected rows"),
        ([[]], r"found none: expected rows"),
        ([[[1]]], r"an array of shape \(1, 1, 1\)"),
        ([[2**80]], r"of object: expected rows"),
        ([[5, 6], [7, 384]], r"token id 384 \(row 1, column 1\): expected 0 to 383"),
        ([[-1]], r"token id -1 \(row 0, column 0\): expected 0 to 383"),
        ([[2**40]], r"token id 1099511627776 .*: expected 0 to 383"),
        (np.array([[2**64 - 1]], np.uint64), r"token id 18446744073709551615"),
        ([[1] * 17], r"tokens of a row = 17: expected at most the model's context of 16"),
    ],
)
def test_what_is_no_row_of_ids_is_an_error_that_says_what_is_one(loaded, rows, message):
    with pytest.raises(UserError, match=message):
        loaded.apply(rows)


def test_ids_may_be_of_any_integer_type_on_any_device_and_under_jit(loaded):
    expected = loaded.apply([[1, 2, 3]])
    for rows in (np.array([[1, 2, 3]], np.uint16), jax.numpy.array([[1, 2, 3]]), ((1, 2, 3),)):
        np.testing.assert_array_equal(loaded.apply(rows), expected)
    np.testing.assert_allclose(jax.jit(loaded.apply)(np.array([[1, 2, 3]])), expected, atol=1e-6)


@pytest.mark.parametrize("prompts", [5, None, [1, 2], [[1, 2]], b"the", {"the": 1}])
def test_a_prompt_that_is_no_text_is_refused(loaded, prompts):
    with pytest.raises(UserError, match=r"generate: found .*: expected a text or a list of texts"):
        loaded.generate(prompts)


def test_parameters_that_are_not_finite_are_named_before_anything_is_drawn(loaded):
    table = loaded.params["tokens"].at[3, :2].set(np.nan).at[4, 0].set(np.inf)
    broken = dataclasses.replace(loaded, params=loaded.params | {"tokens": table})
    for use in (lambda: broken.generate("the"), broken.chat):
        with pytest.raises(UserError, match=r"step 10: 3 entries of the parameter tokens are NaN or infinite"):
            use()


def test_one_prompt_or_several_may_be_continued(trained):
    loaded = lmjax.load(trained[1])
    (one,) = loaded.generate("the cat", max_tokens=5, temperature=0.0)
    several = loaded.generate(["the cat", "a"], max_tokens=5, temperature=0.0)
    assert several[0].text == one.text and several[0].tokens == one.tokens and len(several) == 2
    assert "".join(loaded.token_texts(one.tokens)).startswith(one.text[:1])
    with pytest.raises(UserError, match=r"top_k = 0: expected a number above 0"):
        loaded.generate("the", top_k=0)


@pytest.mark.parametrize(
    ("use", "settings", "fixed"),
    [
        (Trained.generate, SamplingSettings, set()),
        (Trained.beam_search, BeamSettings, set()),
        (Trained.chat, SamplingSettings, {"ends", "top"}),
    ],
)
def test_keywords_are_the_settings_with_their_defaults(use, settings, fixed):
    fields = {field.name: field for field in dataclasses.fields(settings) if field.name not in fixed}
    keywords = {p.name: p for p in inspect.signature(use).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert {name: p.default for name, p in keywords.items()} == {name: f.default for name, f in fields.items()}
    types = {name: f.type for name, f in fields.items()}
    wider = {"stop": "str | Sequence[str]", "ends": "Sequence[int]"}
    assert {name: p.annotation for name, p in keywords.items()} == {n: wider.get(n, t) for n, t in types.items()}


def test_every_keyword_reaches_what_draws(loaded, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "generate", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setattr(module, "beam_search", lambda *arguments: seen.append(arguments[-1]))
    monkeypatch.setattr(module, "chat", lambda *arguments: seen.append(arguments[3]))
    drawn = {"max_tokens": 3, "temperature": 0.5, "top_k": 4, "top_p": 0.7, "repetition_penalty": 1.1, "seed": 5}
    drawn |= {"beyond_context": "slide"}
    loaded.generate("a", **drawn, top=2, stop=["x"], ends=np.array([7]))
    loaded.chat(**drawn, stop="x")
    found = {"beams": 3, "max_tokens": 4, "length_penalty": 0.5, "n_best": 2, "early_stopping": "never"}
    loaded.beam_search("a", **found, ends=[7])
    assert seen[0] == SamplingSettings(**drawn, top=2, stop=("x",), ends=(7,))
    assert seen[1] == SamplingSettings(**drawn, stop=("x",))
    assert seen[2] == BeamSettings(**found, ends=(7,))


def test_a_trained_model_is_shown_in_three_lines(loaded, trained):
    one, two, three = repr(loaded).splitlines()
    count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    assert one == f"Trained LanguageModel: {count:,} parameters, layers 1, width 16, context 16"
    assert two == "  step 10 of 'tiny'; tokenizer: bpe, 270 entries"
    assert three == "  on 1 x cpu, computed in float32"
    cut = lmjax.load(trained[1], mesh=lmjax.mesh(fsdp=8))
    assert repr(cut).splitlines()[2] == "  on 8 x cpu (fsdp=8), computed in float32"


def test_a_mesh_cuts_the_parameters_and_changes_no_text(loaded, trained):
    cut = lmjax.load(trained[1], mesh=MeshSettings(fsdp=2, tensor=2, data=2))
    assert_same_bits(cut.params, loaded.params)
    leaves = jax.tree.leaves(cut.params)
    most = sum(max(shard.data.size for shard in leaf.addressable_shards) for leaf in leaves)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in leaves)
    assert most < sum(leaf.size for leaf in leaves) / 2  # no device has more than half of them
    prompts = ["the cat", "a"]
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 3}):
        mine, theirs = (model.generate(prompts, max_tokens=8, **settings) for model in (cut, loaded))
        assert [text.tokens for text in mine] == [text.tokens for text in theirs]
    np.testing.assert_allclose(cut.apply([[5, 6, 7]]), loaded.apply([[5, 6, 7]]), atol=1e-5)


def test_a_place_without_a_checkpoint_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(
            UserError, match=rf"{path}: no checkpoint; expected a workdir, a stage's folder or a step's"
        ):
            lmjax.load(path)


def _damaged(trained, tmp_path: Path, where: str) -> Path:
    copy = tmp_path / "10"
    shutil.copytree(trained[1] / "checkpoints" / "pretrain" / "10", copy)
    for path in filter(Path.is_file, (copy / where).rglob("*")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return copy


def test_a_damaged_checkpoint_is_an_error_that_names_it(trained, tmp_path):
    copy = _damaged(trained, tmp_path, "state")
    with pytest.raises(UserError, match=rf"{copy} is damaged: .*; name an older step's folder"):
        lmjax.load(copy)


def test_damaged_extras_are_an_error_that_names_the_checkpoint(trained, tmp_path):
    copy = _damaged(trained, tmp_path, "extras")
    with pytest.raises(UserError, match=rf"{copy}: damaged: its recipe cannot be read"):
        lmjax.load(copy)


def test_a_recipe_of_another_version_names_the_unknown_field(trained, tmp_path):
    copy = tmp_path / "10"
    shutil.copytree(trained[1] / "checkpoints" / "pretrain" / "10", copy)
    path = copy / "extras" / "metadata"
    extras = json.loads(path.read_text())
    recipe = json.loads(extras["recipe"])
    recipe["train"]["stepz"] = 3
    path.write_text(json.dumps(extras | {"recipe": json.dumps(recipe)}))
    write_digests(copy, 10)
    with pytest.raises(UserError, match=rf"{copy}: recipe: unknown field 'train.stepz'; did you mean 'steps'\?"):
        lmjax.load(copy)
