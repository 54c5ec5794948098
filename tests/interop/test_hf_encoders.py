"""BERT's and T5's Hugging Face folders: the reference library's numbers, and bits that survive the way out and back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lmjax.errors import UserError
from lmjax.interop.hf_config import parse_config, write_config
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.families import model_of
from lmjax.model.presets import preset
from tests.interop.stored_encoders import BERT, T5, Stored, expected_and_found, said

TOLERANCE = 1e-4


@pytest.fixture
def stored(tmp_path):
    return lambda name: Stored(tmp_path, name)


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", [*BERT, *T5])
def test_a_model_and_its_head_say_what_the_reference_library_says(stored, name, scan_layers):
    folder = stored(name)
    model, batch = read_model(folder.write(), scan_layers=scan_layers), folder.batch
    found = said(model, batch, scan_layers)
    real = np.asarray(batch["segments"]) != 0  # what padding says is nobody's concern
    compared = 0
    for expected, ours in expected_and_found(name, folder.outputs, found):
        by_token = expected.ndim > 1 and expected.shape[:2] == real.shape
        where = real if by_token else np.ones(len(expected), bool)
        np.testing.assert_allclose(ours[where], expected[where], rtol=0, atol=TOLERANCE)
        compared += 1
    assert compared == len(folder.outputs) > 0


@pytest.mark.parametrize("name", [*BERT, *T5])
def test_parameters_have_the_model_s_own_structure(stored, name):
    model = read_model(stored(name).write())
    fresh = jax.eval_shape(model_of(model.settings).init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), (model.params, fresh))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scanned", "unscanned"])
@pytest.mark.parametrize("name", [*BERT, *T5])
def test_a_folder_comes_back_bit_for_bit_and_with_its_classes(stored, tmp_path, name, scan_layers):
    folder = stored(name)
    model = read_model(folder.write(), scan_layers=scan_layers)
    assert write_model(tmp_path / "out", model.settings, model.params, head=model.head) == folder.config["model_type"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == folder.tensors.keys()
    if name == "bert_masked_untied":  # where transformers adds cls.predictions.decoder.bias, and this one to nothing
        del folder.tensors["cls.predictions.bias"]
    assert all(written[key].tobytes() == value.tobytes() for key, value in folder.tensors.items())
    back = read_model(tmp_path / "out")
    assert back.settings == model.settings
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == folder.config["architectures"]
    labels = ("no", "maybe", "yes") if name in ("bert_sequence", "bert_tokens") else ()
    assert ((back.head and back.head.labels) or ()) == ((model.head and model.head.labels) or ()) == labels


def test_an_older_file_s_names_of_norms_second_copies_and_buffers_are_read(stored):
    folder = stored("bert_pretraining")
    whole = read_model(folder.write())
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in list(folder.tensors):
        for new, old in renamed.items():
            if name.endswith(new):
                folder.tensors[name.replace(new, old)] = folder.tensors.pop(name)
    folder.tensors["cls.predictions.decoder.weight"] = folder.tensors["bert.embeddings.word_embeddings.weight"].copy()
    folder.tensors["cls.predictions.decoder.bias"] = folder.tensors["cls.predictions.bias"].copy()
    folder.tensors["bert.embeddings.position_ids"] = np.arange(12)[None]
    again = read_model(folder.write())
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, whole.params))
    folder.tensors["cls.predictions.decoder.weight"][3, 4] += 1e-6
    with pytest.raises(UserError, match=r"decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight"):
        read_model(folder.write())


def test_a_t5_s_head_of_its_own_is_read_whatever_the_config_says_of_ties(stored):
    """transformers 5 writes tie_word_embeddings = true for version 1.1, whose head is another table."""
    folder = stored("t5_gated")
    assert folder.config["tie_word_embeddings"] is True and folder.config["scale_decoder_outputs"] is False
    model = read_model(folder.write())
    assert not model.settings.tied_head and not model.settings.head.scaled
    del folder.config["scale_decoder_outputs"]
    folder.config["tie_word_embeddings"] = False  # as transformers 4 does
    assert read_model(folder.write()).settings == model.settings
    tied = stored("t5")
    one = read_model(tied.write())
    assert one.settings.tied_head and one.settings.head.scaled and one.settings.encoder_layers == 2
    for copy in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tied.tensors[copy] = tied.tensors["shared.weight"].copy()
    assert read_model(tied.write()).settings == one.settings
    tied.tensors["decoder.embed_tokens.weight"][0, 0] += 1
    with pytest.raises(UserError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        read_model(tied.write())


PUBLISHED = [
    ("bert_base", {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}),
    (
        "bert_large",
        {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    ("t5_small", {"num_layers": 6, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8}),
    ("t5_v1_1_small", {"num_layers": 8, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6}),
]


@pytest.mark.parametrize(("name", "sizes"), PUBLISHED)
def test_the_published_presets_are_what_their_config_says(name, sizes):
    bert = {"model_type": "bert", "architectures": ["BertForPreTraining"], "vocab_size": 30522, "hidden_act": "gelu"}
    bert |= {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.02}
    bert |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False}
    t5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 32128, "n_positions": 512}
    t5 |= {"relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-06, "dropout_rate": 0.1}
    t5 |= {"is_encoder_decoder": True, "initializer_factor": 1.0, "eos_token_id": 1, "decoder_start_token_id": 0}
    later = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 8}
    fields = bert if name.startswith("bert") else t5 | (later if "v1_1" in name else {})
    found = parse_config(fields | sizes, "config.json").settings
    expected = preset(name)
    if "v1_1" in name:  # pretrained without dropout; its config.json is for fine-tuning
        expected = dataclasses.replace(expected, dropout=0.1)
    assert found == expected
    assert parse_config(write_config(expected, None), "config.json").settings == expected


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bert_model",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type .* 'relative_key'.*absolute",
        ),
        ("bert_model", {"is_decoder": True}, "is_decoder = True: expected false"),
        (
            "bert_model",
            {"architectures": ["BertLMHeadModel"]},
            "architectures = .*BertLMHeadModel.*: expected one of BertModel",
        ),
        (
            "bert_sequence",
            {"classifier_dropout": 0.3},
            "classifier_dropout = 0.3: expected null or hidden_dropout_prob's 0.1",
        ),
        ("bert_sequence", {"architectures": ["BertModel"]}, r"classifier\.bias is no part of a 'bert' language model"),
        ("bert_model", {"architectures": ["BertForTokenClassification"]}, r"no tensor classifier\.weight"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj = 'gated-tanh': expected one of relu"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder = False: expected true"),
    ],
)
def test_what_lmjax_does_not_compute_is_refused_by_field_or_tensor(stored, name, changes, message):
    folder = stored(name)
    folder.config |= changes
    with pytest.raises(UserError, match=message):
        read_model(folder.write())


def test_a_classifier_goes_out_without_the_head_of_the_masked_language_model(stored, tmp_path):
    model, head = (read_model(stored(name).write()) for name in ("bert_pretraining", "bert_sequence"))
    write_model(tmp_path / "out", model.settings, model.params, head=head.head)
    back = read_model(tmp_path / "out")
    assert back.head.labels == ("no", "maybe", "yes") and not back.settings.head.transform
    assert "cls.predictions.bias" not in load_file(tmp_path / "out" / "model.safetensors")
