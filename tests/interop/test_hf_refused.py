"""Hugging Face folders that cannot be followed: configs, tensors, indexes and settings are refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.errors import UserError
from lmjax.interop.huggingface import read_model, write_model
from lmjax.settings import AttentionSettings, FeedForwardSettings, ModelSettings, NormSettings, PositionSettings

BAD_CONFIGS = [
    (
        "gpt2",
        {"model_type": "gpt_neo"},
        r"model_type = 'gpt_neo': expected one of 'openai-gpt', 'gpt2', 'opt', 'llama'",
    ),
    ("gpt2", {"model_type": None}, "model_type = None: expected one of"),
    ("gpt2", {"activation_function": "gelu_fast"}, "activation_function = 'gelu_fast': expected one of gelu_new"),
    ("gpt1", {"afn": "gelu_new"}, "afn = 'gelu_new': expected one of gelu, relu, silu"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True: expected false"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True: expected false"),
    ("gpt2", {"pruned_heads": {"0": [1]}}, r"pruned_heads = .*: expected \{\}"),
    ("gpt2", {"embd_pdrop": 0.3}, "embd_pdrop = 0.3: expected resid_pdrop's 0.1"),
    ("gpt2", {"n_ctx": 10}, "n_ctx = 10: expected 12"),
    ("gpt1", {"n_special": 3}, "n_special = 3: expected 0"),
    ("gpt2", {"n_layer": None}, "n_layer = None: expected a whole number above 0"),
    ("gpt2", {"n_layer": 2.0}, r"n_layer = 2\.0: expected a whole number"),
    ("gpt2", {"n_head": 5}, "n_head = 5: expected a divisor of n_embd = 18"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': expected true or false"),
    ("gpt2", {"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon = '1e-5': expected a number above 0"),
    ("gpt2", {"attn_pdrop": 1.0}, r"attn_pdrop = 1\.0: expected a fraction in"),
    ("gpt1", {"layer_norm_epsilon": 0}, "layer_norm_epsilon = 0: expected a number above 0"),
    ("llama_grouped", {"head_dim": None, "num_attention_heads": 6}, "num_attention_heads = 6: expected a divisor"),
    ("gpt2", {"n_embed": 18}, "n_embed = 18: expected no such field.*did you mean 'n_embd'"),
    ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config = .*: expected null"),
    ("llama_grouped", {"rope_scaling": {"type": "dynamic"}}, "rope_scaling = .*factor, too, for 'dynamic'"),
    ("llama_grouped", {"rope_parameters": {"rope_theta": 50.0, "factor": 8.0}}, "rope_parameters = .*no more"),
    ("llama_grouped", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters = .*partial_rotary_factor"),
    ("llama_grouped", {"rope_theta": 60.0}, r"rope_theta = 60\.0: expected one base, found \[50\.0, 60\.0\]"),
    ("llama_grouped", {"rope_interleaved": True}, "rope_interleaved = True: expected false"),
    ("llama_grouped", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu': expected one of"),
    (
        "llama_grouped",
        {"num_key_value_heads": 3},
        "num_key_value_heads = 3: expected a divisor of num_attention_heads = 4",
    ),
    ("llama_grouped", {"sliding_window": 8}, "sliding_window = 8: expected no such field"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    BAD_CONFIGS,
    ids=[f"{n}-{next(iter(c))}-{i}" for i, (n, c, _) in enumerate(BAD_CONFIGS)],
)
def test_a_config_that_cannot_be_followed_is_refused_by_field(golden, name, change, message):
    folder = golden(name)
    folder.config |= change
    with pytest.raises(UserError, match=f"config.json: {message}"):
        read_model(folder.write())


def test_a_missing_size_is_not_guessed(golden):
    folder = golden("gpt2")
    del folder.config["n_positions"]
    with pytest.raises(UserError, match=r"config\.json: n_positions = \(absent\)"):
        read_model(folder.write())


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", "[" * 100_000, "1" * 5000])
def test_a_config_that_is_no_object_is_refused(golden, text):
    path = golden("gpt2").write()
    (path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=r"config\.json.*expected (JSON|an object|UTF-8)"):
        read_model(path)


def _drop(name):
    return lambda tensors: tensors.pop(name)


def _put(name, array):
    return lambda tensors: tensors.update({name: array})


BAD_TENSORS = {
    "missing": (_drop("transformer.h.1.mlp.c_fc.bias"), r"no tensor transformer\.h\.1\.mlp\.c_fc\.bias; .*\(72,\)"),
    "embedding missing": (_drop("transformer.wte.weight"), r"no tensor transformer\.wte\.weight"),
    "transposed": (
        _put("transformer.h.0.mlp.c_fc.weight", np.zeros((72, 18), np.float32)),
        r"transformer\.h\.0\.mlp\.c_fc\.weight has shape \(72, 18\): expected \(18, 72\)",
    ),
    "one layer more": (
        _put("transformer.h.2.ln_1.weight", np.zeros(18, np.float32)),
        r"transformer\.h\.2\.ln_1\.weight is no part of a 'gpt2'",
    ),
    "another head": (_put("score.weight", np.zeros((2, 18), np.float32)), r"score\.weight is no part"),
    "quantized": (
        _put("transformer.wpe.weight", np.zeros((12, 18), np.int8)),
        r"transformer\.wpe\.weight has dtype I8: expected F32, F16, BF16",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused_by_name(golden, case):
    change, message = BAD_TENSORS[case]
    folder = golden("gpt2")
    change(folder.tensors)
    with pytest.raises(UserError, match=f"model.safetensors: {message}"):
        read_model(folder.write())


def test_a_tied_model_s_tensors_do_not_pass_for_an_untied_one(golden):
    folder = golden("gpt2")
    folder.config["tie_word_embeddings"] = False
    with pytest.raises(UserError, match=r"no tensor lm_head\.weight"):
        read_model(folder.write())


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "model.bin",
        "",
        3,
    ],
)
def test_an_index_reads_nothing_outside_its_folder(golden, name):
    folder = golden("gpt2")
    path = folder.write_sharded()
    save_file(folder.tensors, path.parent / "outside.safetensors")  # it is there, and would fit
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["transformer.wte.weight"] = name
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json: weight_map\['transformer\.wte\.weight'\] = .*plain name"):
        read_model(path)


def _edit_index(path, change):
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def test_an_index_and_its_files_must_agree(golden):
    path = golden("gpt2").write_sharded()
    _edit_index(path, lambda names: names.pop("transformer.wte.weight"))
    with pytest.raises(UserError, match=r"transformer\.wte\.weight is in this file, but .* does not name it"):
        read_model(path)
    _edit_index(path, lambda names: names.update({"transformer.wte.weight": "model-00001-of-00002.safetensors"}))
    with pytest.raises(UserError, match=r"00001-of-00002\.safetensors: transformer\.wte\.weight is not in this file"):
        read_model(path)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"00002-of-00002\.safetensors: no such file"):
        read_model(path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', "[]"])
def test_an_index_that_names_nothing_is_refused(golden, text):
    path = golden("gpt2").write_sharded()
    (path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json(:1)?: expected"):
        read_model(path)


def test_a_folder_s_weights_must_be_there_once_whole_and_no_pickle(golden):
    folder = golden("gpt2")
    path = folder.write()
    content = (path / "model.safetensors").read_bytes()
    for damaged in (content[:-10], content[:7], b"\xff" * 64, b""):
        (path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: expected a whole safetensors file"):
            read_model(path)
    folder.write_sharded()
    with pytest.raises(UserError, match="found both"):
        read_model(path)
    for file in path.glob("model*"):
        file.unlink()
    with pytest.raises(UserError, match="found neither"):
        read_model(path)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"found pytorch_model\.bin, which only pickle reads"):
        read_model(path)
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        read_model(path / "absent")


def _settings(**changes):
    changes.setdefault("attention", AttentionSettings(heads=2))
    return ModelSettings(**{"layers": 2, "width": 16, "context": 8, "vocab_size": 20} | changes)


POST = NormSettings(position="post", final=False)
NOT_EXPORTED = {
    "model.attention.pattern": _settings(attention=AttentionSettings(heads=2, pattern=("dense", "banded"), band=7)),
    "model.attention.kv_heads": _settings(attention=AttentionSettings(heads=2, kv_heads=1)),
    "model.attention.bias": _settings(attention=AttentionSettings(heads=2, bias=False)),
    "model.attention.scaled": _settings(attention=AttentionSettings(heads=2, scaled=False), norm=POST),
    "model.norm.position": _settings(norm=NormSettings(position="post", bias=False, final=True)),
    "model.feed_forward.gated": _settings(feed_forward=FeedForwardSettings(gated=True)),
    "model.feed_forward.width": _settings(feed_forward=FeedForwardSettings(width=20), norm=POST),
    "model.feed_forward.activation": _settings(feed_forward=FeedForwardSettings(activation="gelu_erf"), norm=POST),
    "model.norm.bias": _settings(norm=NormSettings(bias=False)),
    "model.norm.final": _settings(norm=NormSettings(final=False)),
    "model.norm.kind": _settings(norm=NormSettings(kind="rmsnorm")),
    "model.positions.kind": _settings(positions=PositionSettings(kind="rotary")),
    "model.attention.head_dim": _settings(attention=AttentionSettings(heads=2, head_dim=6)),
}


@pytest.mark.parametrize("field", NOT_EXPORTED)
def test_a_setting_that_no_model_type_has_is_refused_by_name(tmp_path, field):
    with pytest.raises(UserError, match=rf"^{field} = .*: expected .* cannot be exported"):
        write_model(tmp_path / "out", NOT_EXPORTED[field], {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gpt2", "layer_norm_epsilon"),
        ("gpt2", "attn_pdrop"),
        ("gpt2", "n_embd"),
        ("gpt2", "activation_function"),
        ("llama_grouped", "rope_theta"),
        ("llama_grouped", "rope_parameters"),
        pytest.param("gpt2", "x" * 10_000, id="gpt2-unknown"),
    ],
)
@pytest.mark.parametrize("value", [10**400, "x" * 10_000], ids=["digits", "characters"])
def test_a_number_that_no_float_can_hold_and_a_long_value_are_refused_in_a_line(golden, name, field, value):
    folder = golden(name)
    folder.config[field] = {"rope_theta": value} if field == "rope_parameters" else value
    path = folder.write()
    with pytest.raises(UserError) as error:
        read_model(path)
    message = str(error.value).removeprefix(str(path))  # which may be long itself
    assert f"config.json: {field[:100]}" in message and len(message) < 1_000
