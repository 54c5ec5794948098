"""Hugging Face folders: the reference library's logits, and bits that survive the way out and back."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.errors import UserError
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel
from lmjax.model.presets import preset
from lmjax.model.stack import stack_layers
from lmjax.settings import AttentionSettings, ModelSettings

CASES = ("gpt1", "gpt2", "gpt2_untied_erf_unscaled", "llama_grouped", "llama_tied_biased")
TOLERANCE = 1e-4


def bits(tree):
    return [
        (jax.tree_util.keystr(path), x.shape, np.asarray(x, np.float32).tobytes())
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_reference_library_s(golden, logits_of, name, scan_layers):
    folder = golden(name)
    model = read_model(folder.write(), scan_layers=scan_layers)
    assert ("periods" in model.params) == scan_layers
    found = logits_of(model.settings, model.params, folder.tokens, scan_layers)
    np.testing.assert_allclose(found, folder.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_parameters_have_the_model_s_own_structure(golden, name):
    model = read_model(golden(name).write())
    fresh = jax.eval_shape(LanguageModel(model.settings).init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), (model.params, fresh))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", CASES)
def test_a_folder_comes_back_bit_for_bit(golden, tmp_path, name, scan_layers):
    folder = golden(name)
    model = read_model(folder.write(), scan_layers=scan_layers)
    assert write_model(tmp_path / "out", model.settings, model.params) == folder.config["model_type"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == folder.tensors.keys()
    assert all(written[key].tobytes() == value.tobytes() for key, value in folder.tensors.items())
    assert read_model(tmp_path / "out").settings == model.settings


GPT2_PERIODIC = ModelSettings(
    layers=4, width=24, context=16, vocab_size=50, attention=AttentionSettings(heads=3, pattern=("dense", "dense"))
)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
def test_a_model_trained_here_goes_out_and_comes_back(tmp_path, logits_of, random_params, scan_layers):
    """Its layers are kept in periods of two, which a folder does not know."""
    params = random_params(GPT2_PERIODIC, scan_layers)
    write_model(tmp_path, GPT2_PERIODIC, params)
    back = read_model(tmp_path)
    tokens = np.arange(32).reshape(2, 16)
    expected = logits_of(GPT2_PERIODIC, params, tokens, scan_layers)
    np.testing.assert_allclose(logits_of(back.settings, back.params, tokens), expected, rtol=0, atol=1e-6)
    write_model(tmp_path / "again", back.settings, back.params)
    first, second = (load_file(place / "model.safetensors") for place in (tmp_path, tmp_path / "again"))
    assert bits(first) == bits(second)


def test_the_published_presets_are_what_their_config_says(tmp_path):
    """GPT-1's and GPT-2's own config.json, whose dropout the GPT-2 preset leaves to the recipe."""
    from lmjax.interop.hf_config import parse_config, write_config

    sizes = {"n_layer": 12, "n_embd": 768, "n_head": 12, "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1}
    sizes |= {"layer_norm_epsilon": 1e-05, "initializer_range": 0.02, "summary_type": "cls_index"}
    gpt1 = {"model_type": "openai-gpt", "afn": "gelu", "n_ctx": 512, "n_positions": 512, "n_special": 0}
    gpt1 |= {"vocab_size": 40478, "predict_special_tokens": True}
    assert parse_config(sizes | gpt1, "config.json").settings == preset("gpt1")
    gpt2 = {"model_type": "gpt2", "activation_function": "gelu_new", "n_ctx": 1024, "n_positions": 1024}
    gpt2 |= {
        "vocab_size": 50257,
        "eos_token_id": 50256,
        "task_specific_params": {"text-generation": {"max_length": 50}},
    }
    found = parse_config(sizes | gpt2, "config.json")
    bare = dataclasses.replace(
        found.settings, dropout=0.0, attention=dataclasses.replace(found.settings.attention, dropout=0.0)
    )
    assert (bare, found.eos_id) == (preset("gpt2_124m"), 50256)
    for name in ("gpt1", "gpt2_1558m"):
        assert parse_config(write_config(preset(name), None), "config.json").settings == preset(name)


def test_several_files_and_their_index_are_one_model(golden):
    folder = golden("llama_grouped")
    whole = read_model(folder.write())
    (folder.path / "model.safetensors").unlink()
    assert bits(read_model(folder.write_sharded()).params) == bits(whole.params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_exactly(golden, dtype):
    folder = golden("gpt2")
    halves = {name: tensor.astype(dtype) for name, tensor in folder.tensors.items()}
    folder.tensors = {name: tensor.astype(np.float32) for name, tensor in halves.items()}
    wide = read_model(folder.write())
    folder.tensors = halves
    assert bits(read_model(folder.write()).params) == bits(wide.params)


@pytest.mark.parametrize(
    ("name", "prefix"), [("gpt1", "transformer."), ("gpt2", "transformer."), ("llama_tied_biased", "model.")]
)
def test_a_model_saved_without_its_head_and_with_old_buffers_is_the_same(golden, name, prefix):
    folder = golden(name)
    whole = read_model(folder.write())
    folder.tensors = {key.removeprefix(prefix): value for key, value in folder.tensors.items()}
    if name == "llama_tied_biased":
        folder.tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    else:
        folder.tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 12, 12), np.uint8))
    assert bits(read_model(folder.write()).params) == bits(whole.params)


def test_a_tied_head_may_be_stored_twice_but_not_differ(golden):
    folder = golden("gpt2")
    whole = read_model(folder.write())
    folder.tensors["lm_head.weight"] = folder.tensors["transformer.wte.weight"].copy()
    assert bits(read_model(folder.write()).params) == bits(whole.params)
    folder.tensors["lm_head.weight"][3, 4] += 1e-6
    with pytest.raises(UserError, match=r"model\.safetensors: lm_head\.weight differs .* tie_word_embeddings"):
        read_model(folder.write())


def test_the_rotary_fields_of_transformers_4_and_5_say_the_same(golden):
    folder = golden("llama_grouped")
    new = read_model(folder.write()).settings
    assert new.positions.rotary_base == 50.0
    del folder.config["rope_parameters"]
    folder.config |= {"rope_theta": 50.0, "rope_scaling": None}
    assert read_model(folder.write()).settings == new


def test_a_band_that_covers_the_context_is_dense_attention(tmp_path, logits_of, random_params):
    attention = AttentionSettings(heads=2, pattern=("dense", "banded"), band=8)
    settings = ModelSettings(layers=2, width=16, context=8, vocab_size=20, attention=attention)
    params = random_params(settings)
    write_model(tmp_path, settings, params)
    back, tokens = read_model(tmp_path), np.arange(16).reshape(2, 8)
    expected = logits_of(settings, params, tokens)
    np.testing.assert_allclose(logits_of(back.settings, back.params, tokens), expected, rtol=0, atol=1e-6)


def test_unscanned_parameters_are_the_scanned_ones_in_a_row(golden):
    path = golden("llama_grouped").write()
    assert bits(stack_layers(read_model(path, scan_layers=False).params)) == bits(read_model(path).params)
