"""Today's open decoders: the reference library's logits, decoding with a cache, and bits that survive out and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.errors import UserError
from lmjax.interop.hf_config import parse_config, write_config
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel
from lmjax.model.open_presets import OPEN_PRESETS
from lmjax.settings import RotaryScaling, ScoreSettings

TOLERANCE = 1e-5


def changed(settings, part, **fields):
    """The settings with fields of a part changed; the part may be below another, as in "attention.scores"."""
    name, _, rest = part.partition(".")
    inner = getattr(settings, name)
    inner = changed(inner, rest, **fields) if rest else dataclasses.replace(inner, **fields)
    return dataclasses.replace(settings, **{name: inner})


# A model that leaves out what each family is known by: the golden texts must tell it apart.
WITHOUT = {
    "llama3": lambda s: changed(s, "positions.rotary_scaling", slow_turns=0.5),
    "llama_linear": lambda s: changed(s, "positions", rotary_scaling=RotaryScaling()),
    "llama_yarn": lambda s: changed(s, "positions.rotary_scaling", amplitude=1.0),
    "llama_yarn_fractions": lambda s: changed(s, "positions.rotary_scaling", whole_pairs=True),
    "mistral": lambda s: changed(s, "attention", band=6),
    "qwen2": lambda s: changed(s, "attention", pattern=("banded", "dense")),
    "qwen3": lambda s: changed(s, "norm", eps=1e-6),
    "smollm3": lambda s: changed(s, "attention", pattern=("nope", "dense")),
    "olmo2": lambda s: changed(s, "norm", eps=1e-6),
    "gemma2": lambda s: changed(s, "attention", scores=ScoreSettings(scale_dim=12)),
    "gemma3_text": lambda s: changed(s, "positions", banded_rotary_base=None),
    "opt": lambda s: changed(s, "feed_forward", activation="gelu_erf"),
}
CASES = (*WITHOUT, "llama_dynamic")


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_reference_library_s(golden, logits_of, name):
    folder = golden(name)
    model = read_model(folder.write())
    found = logits_of(model.settings, model.params, folder.tokens)
    np.testing.assert_allclose(found, folder.logits, rtol=0, atol=TOLERANCE)
    if name in WITHOUT:
        other = logits_of(WITHOUT[name](model.settings), model.params, folder.tokens)
        assert np.abs(other - folder.logits).max() > 30 * TOLERANCE, "the golden text shows the feature"


@pytest.mark.parametrize(
    "name", ["llama_yarn", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "gemma2", "gemma3_text", "opt"]
)
def test_decoding_with_a_cache_gives_the_reference_library_s_logits(golden, name):
    """One token at a time, well past the windows."""
    folder = golden(name)
    read = read_model(folder.write())
    model, tokens = LanguageModel(read.settings), np.asarray(folder.tokens, np.int32)
    rows, length = tokens.shape
    cache, extend, found = model.empty_cache(rows, length + 3), jax.jit(model.extend), []
    project = jax.jit(model.project)
    for at in range(length):
        positions = np.full((rows, 1), at, np.int32)
        hidden, cache = extend(read.params, cache, tokens[:, at : at + 1], positions, np.ones((rows, 1), np.int32), at)
        found.append(np.asarray(project(read.params, hidden)))
    np.testing.assert_allclose(np.concatenate(found, 1), folder.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_unrolled_layers_compute_the_same(golden, logits_of, name):
    folder = golden(name)
    model = read_model(folder.write(), scan_layers=False)
    found = logits_of(model.settings, model.params, folder.tokens, scan_layers=False)
    np.testing.assert_allclose(found, folder.logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_a_folder_comes_back_bit_for_bit_with_the_model_s_own_parameters(golden, tmp_path, name):
    folder = golden(name)
    model = read_model(folder.write())
    fresh = jax.eval_shape(LanguageModel(model.settings).init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), (model.params, fresh))
    assert shapes[0] == shapes[1]
    assert write_model(tmp_path / "out", model.settings, model.params) == folder.config["model_type"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == folder.tensors.keys()
    if name == "opt":  # no row of text reads the first two positions
        folder.tensors["model.decoder.embed_positions.weight"][:2] = 0
    assert all(written[key].tobytes() == value.tobytes() for key, value in folder.tensors.items())
    assert read_model(tmp_path / "out").settings == model.settings


def with_heads(settings):
    return changed(settings, "attention", head_dim=settings.head_dim, kv_heads=settings.kv_heads)


@pytest.mark.parametrize("name", OPEN_PRESETS)
def test_a_preset_is_what_its_config_says(name):
    settings = OPEN_PRESETS[name]
    back = parse_config(write_config(settings, 2), "config.json").settings
    assert with_heads(back) == with_heads(settings)


def test_local_layers_that_see_the_whole_context_keep_positions_of_their_own():
    preset = OPEN_PRESETS["gemma3_1b"]
    settings = dataclasses.replace(preset, context=preset.attention.band)
    config = write_config(settings, 2)
    assert config["model_type"] == "gemma3_text"
    assert parse_config(config, "config.json").settings.positions == settings.positions


_LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
PUBLISHED = {  # the fields of published files, with those that say nothing
    "llama3_2_1b": {
        **{"model_type": "llama", "attention_bias": False, "attention_dropout": 0.0, "head_dim": 64, "mlp_bias": False},
        **{"hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192},
        **{"max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 16, "pretraining_tp": 1},
        **{"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True},
        **{"rope_scaling": {"rope_type": "llama3"} | _LLAMA3, "use_cache": True, "vocab_size": 128256},
    },
    "qwen2_5_0_5b": {
        **{"model_type": "qwen2", "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896},
        **{"initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768},
        **{"max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2},
        **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True},
        **{"use_mrope": False, "use_sliding_window": False, "vocab_size": 151936},
    },
    "gemma2_2b": {
        **{"model_type": "gemma2", "attention_bias": False, "attn_logit_softcapping": 50.0, "hidden_size": 2304},
        **{"cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256, "rms_norm_eps": 1e-6},
        **{"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 9216},
        **{"max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26, "sliding_window": 4096},
        **{"num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "vocab_size": 256000},
    },
    "gemma3_1b": {
        **{"model_type": "gemma3_text", "attn_logit_softcapping": None, "final_logit_softcapping": None},
        **{"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912},
        **{"max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26, "sliding_window": 512},
        **{"num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_scaling": None},
        **{"rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window_pattern": 6, "vocab_size": 262144},
    },
    "smollm3_3b": {
        **{"model_type": "smollm3", "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008},
        **{"layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536, "max_window_layers": 28},
        **{"no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16},
        **{"num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-6},
        **{"rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
        **{"vocab_size": 128256},
    },
    "opt_125m": {
        **{"model_type": "opt", "_remove_final_layer_norm": False, "activation_dropout": 0.0, "init_std": 0.02},
        **{"activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": True, "dropout": 0.1},
        **{"ffn_dim": 3072, "hidden_size": 768, "layerdrop": 0.0, "max_position_embeddings": 2048, "prefix": "</s>"},
        **{"num_attention_heads": 12, "num_hidden_layers": 12, "use_cache": True, "vocab_size": 50272},
        **{"word_embed_proj_dim": 768},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name):
    found = parse_config(PUBLISHED[name], "config.json")
    assert with_heads(found.settings) == with_heads(OPEN_PRESETS[name])
    assert found.unread == ()


def test_fields_that_change_no_numbers_pass_and_are_named(golden):
    folder = golden("llama3")
    plain = read_model(folder.write()).config
    assert plain.unread == ()
    folder.config |= {"sliding_window": None, "_note": 3, "unk_token_id": 0, "new_field": None}
    folder.config["layer_types"] = ["full_attention"] * 2
    config = read_model(folder.write()).config
    assert (config.settings, set(config.unread)) == (plain.settings, {"sliding_window", "_note", "new_field"})


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0} | _LLAMA3
REFUSED = [
    ("llama3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = .*: expected what the other"),
    ("llama3", {"layer_types": ["full_attention"]}, "layer_types = .*: expected 2 of 'full_attention', 'sliding"),
    ("llama3", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters = .*one rope_type of default, linear"),
    ("llama3", {"rope_parameters": LLAMA3 | {"factor": "8"}}, "rope_parameters = .*numbers above 0, by rope_theta"),
    ("llama3", {"rope_parameters": LLAMA3 | {"rope_theta": []}}, "rope_parameters = .*numbers above 0, by rope_theta"),
    (
        "llama_yarn",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2, "truncate": 1}},
        "rope_parameters = .*above 0",
    ),
    ("llama3", {"rope_parameters": LLAMA3 | {"beta": 1}}, "rope_parameters = .*of 'llama3' and no more"),
    ("llama3", {"rope_parameters": LLAMA3 | {"low_freq_factor": None}}, "rope_parameters = .*low_freq_factor, too"),
    ("llama3", {"rope_parameters": LLAMA3 | {"low_freq_factor": 9.0}}, "model.positions|.*fast_turns"),
    ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling = .*what rope_parameters says"),
    ("llama3", {"num_hidden_layers": 10**12}, "num_hidden_layers = .*: expected at most 10,000"),
    ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types = .*: expected what the other fields say"),
    ("mistral", {"sliding_window": 0}, "sliding_window = 0: expected a whole number above 0"),
    ("mistral", {"attention_bias": True}, "attention_bias = True: expected no such field"),
    ("qwen2", {"use_mrope": True}, "use_mrope = True: expected false"),
    ("qwen2", {"use_sliding_window": False}, "sliding_window = 5: expected a width for the layers of 'sliding"),
    ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads = 3: expected a divisor"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers = .*: expected 4 times 0 or 1"),
    ("smollm3", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers = .*: expected 4 times 0 or 1"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True: expected false"),
    ("gemma2", {"hidden_act": "silu"}, "hidden_act = 'silu': expected \"gelu_pytorch_tanh\""),
    ("gemma2", {"final_logit_softcapping": -1.0}, r"final_logit_softcapping = -1\.0: expected a number above 0"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50\.0: expected null"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window = None: expected a width"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False: expected true"),
    ("opt", {"word_embed_proj_dim": 8}, "word_embed_proj_dim = 8: expected 16"),
    ("opt", {"activation_function": "gelu"}, "activation_function = 'gelu': expected one of relu"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(REFUSED)])
def test_a_field_that_changes_the_numbers_and_is_not_followed_is_refused(golden, name, change, message):
    folder = golden(name)
    folder.config |= change
    with pytest.raises(UserError, match=f"config.json: {message}"):
        read_model(folder.write())


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"model_type": "gpt_neo"}, "lmjax reads no others"),
        ({"model_type": "Qwen-2"}, "did you mean 'qwen2'"),
        ({"model_type": "gemma3", "text_config": {}}, "its text_config is that of a text model"),
        ({"windows": 8}, "no such field, which lmjax does not know; if it changes no logits, remove it"),
    ],
)
def test_a_near_name_is_offered_only_where_it_is_one(golden, change, hint):
    folder = golden("llama3")
    folder.config |= change
    with pytest.raises(UserError, match=hint):
        read_model(folder.write())


def test_rows_beyond_the_context_are_refused_where_frequencies_would_depend_on_them(golden):
    model = read_model(golden("llama_dynamic").write())
    tokens = jnp.zeros((1, 65), jnp.int32)
    batch = {"tokens": tokens, "positions": jnp.arange(65)[None], "segments": jnp.ones_like(tokens)}
    with pytest.raises(UserError, match=r"model\.context = 64: expected a context of 65 tokens.*'dynamic'"):
        LanguageModel(model.settings).hidden(model.params, batch)
