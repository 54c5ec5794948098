"""Against transformers itself, where it and torch are installed: what we write it loads, what it writes we read."""

import jax
import numpy as np
import pytest

from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.hf_tokenizer import read_tokenizer, write_tokenizer
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel
from lmjax.settings import (
    AttentionSettings,
    FeedForwardSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    TokenizerSettings,
)
from lmjax.tokenizers.tokenizer import build_tokenizer
from tests.interop.stored_encoders import BERT, T5, Stored

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
CORPUS = ["the cat sat on the mat, the cat ate the rat\n", "a cat and a hat: 12 + 34 = 46\n"] * 20
TEXTS = ["the cat sat", "  a  hat\n\n", "12+34's", "naïve 猫 🐈", "a<x>b foo bar é 猫!"]


def settings(**changes):
    changes.setdefault("attention", AttentionSettings(heads=4))
    return ModelSettings(**{"layers": 3, "width": 16, "context": 20, "vocab_size": 300} | changes)


OURS = {
    "gpt1": settings(norm=NormSettings(position="post", final=False, eps=1e-3), scaled_residual_init=False),
    "gpt1 untied": settings(norm=NormSettings(position="post", final=False), tied_head=False),
    "gpt2": settings(norm=NormSettings(eps=1e-3)),
    "gpt2 of other values": settings(
        attention=AttentionSettings(heads=2, scaled=False),
        feed_forward=FeedForwardSettings(width=24, activation="gelu_erf"),
        tied_head=False,
    ),
    "llama": settings(
        attention=AttentionSettings(heads=4, kv_heads=2, head_dim=6, bias=False),
        feed_forward=FeedForwardSettings(width=24, activation="silu", gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm", eps=1e-2),
        positions=PositionSettings(kind="rotary", rotary_base=100.0),
    ),
}


def theirs(folder):
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told  # no missing, unexpected, mismatched or misread tensors
    return model.eval()


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens)).long()).logits.numpy()


@pytest.mark.parametrize("name", OURS)
def test_it_loads_what_we_write_and_gives_the_same_logits(tmp_path, logits_of, random_params, name):
    params = random_params(OURS[name])
    write_model(tmp_path, OURS[name], params)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    found = their_logits(theirs(tmp_path), tokens)
    np.testing.assert_allclose(found, logits_of(OURS[name], params, tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", OURS)
def test_we_read_what_it_writes_in_one_file_and_in_several(tmp_path, logits_of, random_params, name):
    write_model(tmp_path / "ours", OURS[name], random_params(OURS[name]))
    model = theirs(tmp_path / "ours")
    tokens = np.random.default_rng(1).integers(0, 300, (2, 20))
    for place, size in (("whole", "1GB"), ("sharded", "6KB")):
        model.save_pretrained(tmp_path / place, max_shard_size=size)
        assert (tmp_path / place / "model.safetensors.index.json").exists() == (place == "sharded")
        back = read_model(tmp_path / place)
        found = logits_of(back.settings, back.params, tokens)
        np.testing.assert_allclose(found, their_logits(model, tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "gpt2_untied_erf_unscaled", "llama_grouped", "llama_tied_biased"])
def test_the_golden_logits_are_still_its_own(golden, name):
    folder = golden(name)
    np.testing.assert_allclose(their_logits(theirs(folder.write()), folder.tokens), folder.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*BERT, *T5])
def test_it_loads_a_bert_or_a_t5_that_we_write_and_we_read_what_it_writes(tmp_path, name):
    folder = Stored(tmp_path, name)
    ours = read_model(folder.write())
    write_model(tmp_path / "ours", ours.settings, ours.params, head=ours.head)
    kind = getattr(transformers, folder.config["architectures"][0])
    model, told = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values()), told
    inputs = {key: torch.from_numpy(value).long() for key, value in folder.inputs.items()}
    inputs = {key: value[None] for key, value in inputs.items()} if name == "bert_choice" else inputs
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    for key, expected in folder.outputs.items():
        np.testing.assert_allclose(outputs[key].numpy(), expected, rtol=0, atol=TOLERANCE)
    model.save_pretrained(tmp_path / "theirs")
    back = read_model(tmp_path / "theirs")
    assert back.settings == ours.settings
    both = [jax.tree.leaves((each.params, each.head and each.head.params)) for each in (back, ours)]
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other)


def test_greedy_decoding_gives_the_same_text(tmp_path, random_params):
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=280), CORPUS)
    shape = settings(vocab_size=280, context=40)
    params = random_params(shape)
    write_model(tmp_path, shape, params, eos_id=tokenizer.eos_id)
    write_tokenizer(tmp_path, tokenizer, shape.context)
    prompt, count = "the cat sat on", 16
    ours = generate(LanguageModel(shape), params, tokenizer, [prompt], SamplingSettings(count, temperature=0))[0]
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = reader(prompt, return_tensors="pt")
    row = theirs(tmp_path).generate(**ids, max_new_tokens=count, do_sample=False, pad_token_id=0)[0].tolist()
    assert ours.tokens == row[ids["input_ids"].shape[1] :]


TOKENIZERS = {
    "byte": TokenizerSettings(kind="byte"),
    "bpe": TokenizerSettings(kind="bpe", vocab_size=280),
    "bpe with symbols": TokenizerSettings(kind="bpe", vocab_size=280, user_symbols=("<x>", "at", "foo bar", "猫!")),
    "wordpiece": TokenizerSettings(kind="wordpiece", vocab_size=50),
    "wordpiece cased": TokenizerSettings(kind="wordpiece", vocab_size=50, lowercase=False),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_its_tokenizer_gives_our_ids(tmp_path, random_params, name):
    tokenizer = build_tokenizer(TOKENIZERS[name], CORPUS)
    write_model(tmp_path, settings(), random_params(settings()), eos_id=tokenizer.eos_id)
    write_tokenizer(tmp_path, tokenizer, 20)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = reader.encode(text, add_special_tokens=False)
        assert ids == tokenizer.encode(text)
        if tokenizer.kind in ("byte", "bpe"):
            assert reader.decode(ids) == text == tokenizer.decode(ids)
    assert reader.convert_tokens_to_ids(reader.eos_token or reader.sep_token) == tokenizer.eos_id


@pytest.mark.parametrize("added", [(), ("<x>", "foo bar")], ids=["plain", "with added tokens"])
def test_our_tokenizer_gives_the_ids_of_one_that_it_saved(tmp_path, added):
    own = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=280), CORPUS)
    write_tokenizer(tmp_path, own, 20)
    reader = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    reader.add_tokens(list(added))
    reader.save_pretrained(tmp_path / "theirs")
    found, reason = read_tokenizer(tmp_path / "theirs")
    assert reason == ""
    assert [found.encode(text) for text in TEXTS] == [reader.encode(text) for text in TEXTS]
    assert found.vocab_size == 280 + len(added)
