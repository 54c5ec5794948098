"""The stop-word filter: which tokens it takes from a tokenizer, and what a model then predicts as a last word."""

import jax
import numpy as np
import pytest

from lmjax.evaluate.answers import Examiner
from lmjax.evaluate.likelihood import Likelihood
from lmjax.evaluate.questions import Question
from lmjax.evaluate.stop_words import STOP_WORDS, stop_word_ids
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import make_mesh
from lmjax.settings import AttentionSettings, MeshSettings, ModelSettings, TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.tokenizer import build_tokenizer

TEXT = "the cat and the dog saw the other theatre and all of the sea; so the cat was on the mat with a dog. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=292), [TEXT])


def test_a_stop_word_is_a_token_with_its_blank(tokenizer):
    found = {tokenizer.decode([token]) for token in stop_word_ids(tokenizer)}
    assert {" the", " and", " on", " of", " a"} <= found
    assert found <= {f" {word}" for word in STOP_WORDS}
    assert len(set(STOP_WORDS)) == len(STOP_WORDS)
    assert stop_word_ids(ByteTokenizer()) == []


def test_the_filter_predicts_the_likeliest_token_that_is_no_stop_word(tokenizer):
    """A small model, of which a full forward pass says what it predicts after each of 800 contexts."""
    model = LanguageModel(
        ModelSettings(
            layers=1, width=16, context=32, vocab_size=292, attention=AttentionSettings(heads=2), init_std=0.5
        )
    )
    params, mesh = model.init(jax.random.key(0)), make_mesh(MeshSettings(), jax.devices()[:1])
    stop_words, words = stop_word_ids(tokenizer), ["cat", "dog", "saw", "sea", "mat", "the", "and", "of", "so"]
    drawn = np.random.default_rng(0)
    contexts = [" ".join(drawn.choice(words, 4)) for _ in range(800)]
    rows = [[tokenizer.eos_id, *tokenizer.encode(context)] for context in contexts]
    batch = np.zeros((len(rows), 32), np.int32)
    for row, ids in zip(batch, rows, strict=True):
        row[: len(ids)] = ids
    places = np.broadcast_to(np.arange(32, dtype=np.int32), batch.shape)
    logits = jax.jit(model.logits)(params, {"tokens": batch, "positions": places, "segments": np.ones_like(batch)})
    last = np.stack(
        [own[len(ids) - 1, : tokenizer.vocab_size] for own, ids in zip(np.asarray(logits), rows, strict=True)]
    )
    likeliest = last.argmax(1)
    last[:, stop_words] = -np.inf
    filtered = last.argmax(1)

    likelihood = Likelihood(model, params, mesh, entries=tokenizer.vocab_size, top=1 + len(stop_words))
    examiner = Examiner(likelihood, tokenizer, 32, stop_words)
    tried = 0
    for context, ids, free, kept in zip(contexts, rows, likeliest, filtered, strict=True):
        for token in (free, kept):
            text = tokenizer.decode([token])
            if free == kept or [tokenizer.eos_id, *tokenizer.encode(context + text)] != [*ids, token]:
                continue  # the text of these tokens has others
            (found,) = examiner.answers([(Question(context, (text,), 0), [context])])
            right = {"last_word": free == token, "last_token": free == token, "filtered": kept == token}
            assert found.marks() == right
            tried += 1
    assert tried >= 6
