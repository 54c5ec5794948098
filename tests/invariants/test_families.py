"""What must hold of BERT's and T5's shapes: what is cached, pooled and packed is what the whole forward pass gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.encoder import Encoder
from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.model.families import model_of
from lmjax.model.heads import ScalarModel, TaskModel, read
from lmjax.model.language_model import LanguageModel
from lmjax.model.presets import preset
from lmjax.settings import ComputeSettings

V, T, S = 50, 9, 7
SIZE = {"vocab_size": V, "context": 16, "dropout": 0.0}


def small(name, **changes):
    settings = preset(name)
    attention = dataclasses.replace(settings.attention, heads=2, head_dim=8, dropout=0.0)
    feed_forward = dataclasses.replace(settings.feed_forward, width=24)
    stacks = {"encoder_layers": 3} if settings.encoder_layers else {}
    sizes = SIZE | {"layers": 2, "width": 16, "attention": attention, "feed_forward": feed_forward} | stacks
    return dataclasses.replace(settings, **sizes | changes)


BERT, T5, T5_1 = small("bert_base"), small("t5_small"), small("t5_v1_1_small")


def parameters(model):
    """Values that no initialiser gives: biases, scales and tables that are not 0 or 1."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


def arrays(tree):
    """On the host, where arrays of several ranks are added without being told."""
    return jax.tree.map(np.asarray, tree)


def inputs_and_targets(rows=2, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "inputs": rng.integers(0, V, (rows, S)).astype(np.int32),
        "input_positions": np.tile(np.arange(S, dtype=np.int32), (rows, 1)),
        "input_segments": np.array([[1] * 4 + [2] * 2 + [0], [1] * 3 + [2] * 4], np.int32)[:rows],
        "tokens": rng.integers(0, V, (rows, T)).astype(np.int32),
        "positions": np.tile(np.arange(T, dtype=np.int32), (rows, 1)),
        "segments": np.array([[1] * 3 + [2] * 6, [1] * 5 + [2] * 3 + [0]], np.int32)[:rows],
    }


@pytest.mark.parametrize(
    ("settings", "family"), [(BERT, Encoder), (T5, EncoderDecoder), (small("gpt2_124m"), LanguageModel)]
)
def test_the_settings_say_which_family_a_model_is_of(settings, family):
    model = model_of(settings)
    assert type(model) is family
    axes, shapes = model.logical_axes(), jax.eval_shape(model.init, jax.random.key(0))
    named = jax.tree.map(lambda leaf, names: len(names) == leaf.ndim, shapes, axes)
    assert all(jax.tree.leaves(named))


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("settings", [T5, T5_1], ids=["v1.0", "v1.1"])
@pytest.mark.parametrize("rows", [1, 2])
def test_decoding_with_a_cache_is_the_full_pass_and_encodes_once(settings, scan, rows, monkeypatch):
    model = model_of(settings, ComputeSettings(scan_layers=scan))
    params, batch = parameters(model), inputs_and_targets(rows)
    batch["segments"] = np.ones((rows, T), np.int32)
    batch["input_segments"] = (np.arange(S) < np.array([[S], [5]])[:rows]).astype(np.int32)  # padded inputs
    wanted = jax.jit(model.logits)(params, batch)
    cache = jax.jit(model.start_cache, static_argnums=2)(params, batch, T + 2)
    monkeypatch.setattr(EncoderDecoder, "encode", None)  # nothing encodes from here on
    extend = jax.jit(model.extend)
    got, at = [], 0
    for count in (4, 1, 1, 3):
        part = (batch[name][:, at : at + count] for name in ("tokens", "positions", "segments"))
        hidden, cache = extend(params, cache, *part, at)
        got.append(model.project(params, hidden))
        at += count
    np.testing.assert_allclose(np.concatenate(got, 1), wanted, atol=2e-4, rtol=2e-4)


def test_a_segment_of_the_decoder_reads_its_inputs_and_nothing_else():
    """Changing the inputs or the targets of one packed example moves no logit of the other."""
    model = model_of(T5)
    params, batch = parameters(model), inputs_and_targets()
    logits = jax.jit(model.logits)
    before = np.asarray(logits(params, batch))
    for number, other in ((1, 2), (2, 1)):
        changed = dict(batch)
        for tokens, segments in (("inputs", "input_segments"), ("tokens", "segments")):
            own = batch[segments] == number
            changed[tokens] = np.where(own, (batch[tokens] + 1) % V, batch[tokens])
        after = np.asarray(logits(params, changed))
        np.testing.assert_array_equal(after[batch["segments"] == other], before[batch["segments"] == other])
        assert (np.abs(after - before).max(-1) > 1e-4)[batch["segments"] == number].all()
    only_inputs = batch | {"inputs": np.where(batch["input_segments"] == 1, (batch["inputs"] + 1) % V, batch["inputs"])}
    moved = np.abs(np.asarray(logits(params, only_inputs)) - before).max(-1) > 1e-4
    real = batch["segments"] != 0  # a padded query has no meaning
    np.testing.assert_array_equal(moved[real], (batch["segments"] == 1)[real])


def test_the_logits_of_t5_are_scaled_where_the_head_is_tied():
    """TRAPS: d^-0.5 on the logits only when tied."""
    batch = inputs_and_targets()
    for settings, scale in ((T5, 16**-0.5), (T5_1, 1.0)):
        model = model_of(settings)
        params = parameters(model)
        hidden = model.hidden(params, batch).hidden
        table = params["tokens" if settings.tied_head else "head"]
        np.testing.assert_allclose(model.logits(params, batch), scale * hidden @ table.T, atol=1e-4)


def test_a_scanned_model_is_the_unrolled_one():
    stacked = model_of(T5)
    params, batch = parameters(stacked), inputs_and_targets()
    unrolled = dataclasses.replace(stacked, compute=ComputeSettings(scan_layers=False))
    wanted = stacked.logits(params, batch)
    np.testing.assert_allclose(unrolled.logits(stacked.unstacked(params), batch), wanted, atol=1e-4)


def test_berts_parts_are_what_the_paper_says():
    """Tokens, positions and segments are added and normalised; the head is a dense layer, GELU, a norm and a bias."""
    model = model_of(BERT)
    params = parameters(model)
    tokens = np.random.default_rng(1).integers(0, V, (2, T)).astype(np.int32)
    ones = np.ones((2, T), np.int32)
    batch = {"tokens": tokens, "positions": np.tile(np.arange(T), (2, 1)), "segments": ones}
    batch["token_types"] = np.array([[0] * 4 + [1] * 5, [0] * 9], np.int32)
    own, hidden = arrays(params), np.asarray(model.hidden(params, batch).hidden)

    def norm(x, of):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * of["scale"] + of["bias"]

    stackless = dataclasses.replace(BERT, layers=1)
    one = jax.tree.map(lambda leaf: 0 * leaf[:1], params["periods"])  # branches that add nothing
    one = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf + ("scale" in str(path[-1])), one)
    x = own["tokens"][tokens] + own["positions"][:T][None] + own["segment_types"][batch["token_types"]]
    x = norm(x, own["embedding_norm"]["norm"])
    unit = {"scale": 1.0, "bias": 0.0}
    got = model_of(stackless).hidden(params | {"periods": one}, batch).hidden
    np.testing.assert_allclose(got, norm(norm(x, unit), unit), atol=1e-4)

    dense = own["head_transform"]["dense"]
    y = jax.nn.gelu(hidden @ dense["kernel"] + dense["bias"], approximate=False)
    y = norm(np.asarray(y), own["head_transform"]["norm"]["norm"])
    np.testing.assert_allclose(model.logits(params, batch), y @ own["tokens"].T + own["head_bias"], atol=1e-4)
    pooler = own["pooler"]["dense"]
    pooled = np.tanh(hidden[:, 0] @ pooler["kernel"] + pooler["bias"])
    np.testing.assert_allclose(model.pooled(params, hidden), pooled, atol=1e-5)


SEGMENTS = np.array([[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [1] * 6], np.int32)


@pytest.mark.parametrize(("how", "columns"), [("first", [2, 0, 0]), ("last", [4, 1, 5])])
def test_a_head_reads_the_first_or_the_last_real_token(how, columns):
    hidden = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    np.testing.assert_array_equal(read(hidden, jnp.asarray(SEGMENTS), how), hidden[np.arange(3), columns])


def test_a_mean_counts_real_tokens_alone():
    hidden = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    wanted = [hidden[row][SEGMENTS[row] == 1].mean(0) for row in range(3)]
    np.testing.assert_allclose(read(hidden, jnp.asarray(SEGMENTS), "mean"), wanted, rtol=1e-6)
    assert not read(hidden, jnp.zeros_like(SEGMENTS), "mean").any()


@pytest.mark.parametrize("settings", [BERT, T5, small("gpt2_124m")], ids=["encoder", "encoder-decoder", "decoder"])
@pytest.mark.parametrize("reads", ["auto", "mean", "tokens"])
def test_heads_take_any_family(settings, reads):
    model = TaskModel(model_of(settings), 3, reads)
    params, batch = parameters(model), inputs_and_targets()
    hidden = model.trunk.hidden(params["trunk"], batch).hidden
    head = arrays(params["head"])
    got, _ = model.outputs_of(params, batch)
    if reads == "tokens":
        x = hidden
    elif reads == "mean" or model.trunk.read_by_heads != "pooled":
        x = read(hidden, jnp.asarray(batch["segments"]), "mean" if reads == "mean" else "last")
    else:
        x = model.trunk.pooled(params["trunk"], hidden)
    np.testing.assert_allclose(got, np.asarray(x) @ head["kernel"] + head["bias"], atol=1e-4)
    axes = jax.tree.leaves(model.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    assert len(axes) == len(jax.tree.leaves(params))


def test_a_reward_model_on_an_encoder_scores_what_it_is_told_to_read():
    batch = inputs_and_targets()
    for reads in ("first", "last", "mean"):
        model = ScalarModel(model_of(BERT), reads)
        params = parameters(model)
        x = read(model.language_model.hidden(params["trunk"], batch).hidden, jnp.asarray(batch["segments"]), reads)
        wanted = np.asarray(x) @ params["scalar"]["kernel"] + params["scalar"]["bias"]
        np.testing.assert_allclose(model.scores(params, batch), wanted, atol=1e-5)


def test_t5_begins_with_the_deviations_of_its_code():
    """Queries at (D x K)^-0.5, since its scores are not scaled; embeddings at 1 (the released Mesh TensorFlow code)."""
    settings = dataclasses.replace(T5, width=256, vocab_size=400)
    params = model_of(settings).init(jax.random.key(0))
    block = params["decoder"]["periods"]["block_0"]
    wanted = {
        "query": (block["attention"]["query"]["kernel"], (256 * 8) ** -0.5),
        "key": (block["cross_attention"]["key_value"]["kernel"], 256**-0.5),
        "out": (block["attention"]["out"]["kernel"], 16**-0.5),
        "up": (block["feed_forward"]["up"]["kernel"], 256**-0.5),
        "down": (block["feed_forward"]["down"]["kernel"], 24**-0.5),
        "tokens": (params["tokens"], 1.0),
        "bias": (params["encoder"]["relative_bias"]["table"], 256**-0.5),
    }
    for name, (kernel, deviation) in wanted.items():
        assert float(kernel.std()) == pytest.approx(deviation, rel=0.2 if name == "bias" else 0.05), name
