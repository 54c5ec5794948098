"""muP in the model: initial deviations, the scale of scores and of logits, the base model, and what is refused."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interop.huggingface import write_model
from lmjax.model.language_model import LanguageModel
from lmjax.settings import (
    PPO,
    SFT,
    AttentionSettings,
    ComputeSettings,
    FeedForwardSettings,
    ModelSettings,
    MuPSettings,
    OptimizerSettings,
    PositionSettings,
    Pretrain,
    RewardSettings,
)
from lmjax.settings.recipe_files import from_json, to_json

V, T = 37, 12
BASE, STANDARD = MuPSettings(base_width=32, base_head_dim=8), MuPSettings()


def settings_of(mup, width=128, **changes):
    changes.setdefault("attention", AttentionSettings(heads=4))
    return ModelSettings(**{"layers": 2, "width": width, "context": T, "vocab_size": V, "mup": mup} | changes)


def batch():
    return {
        "tokens": jnp.asarray(np.random.default_rng(0).integers(0, V, (2, T)), jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(T), (2, T)),
        "segments": jnp.ones((2, T), jnp.int32),
    }


def test_matrices_from_width_to_width_begin_smaller_by_the_root_of_the_ratio_and_tables_as_in_the_base_model():
    gated = FeedForwardSettings(gated=True)
    params = LanguageModel(settings_of(BASE, tied_head=False, feed_forward=gated)).init(jax.random.key(0))
    block = params["periods"]["block_0"]
    inner = {name: block["attention"][name]["kernel"] for name in ("query", "key_value")}
    inner |= {name: block["feed_forward"][name]["kernel"] for name in ("up", "gate")}
    onto_stream = {"out": block["attention"]["out"]["kernel"], "down": block["feed_forward"]["down"]["kernel"]}
    tables = {name: params[name] for name in ("tokens", "positions", "head")}
    for arrays, std in ((inner, 0.01), (onto_stream, 0.01 / math.sqrt(2 * 2)), (tables, 0.02)):
        for name, array in arrays.items():
            assert array.std() == pytest.approx(std, rel=5 / math.sqrt(2 * array.size)), name


@pytest.mark.parametrize("implementation", ["einsum", "blocked"])
@pytest.mark.parametrize(("scaled", "tied"), [(True, False), (True, True), (False, False)])
def test_a_mup_models_logits_are_the_standard_ones_of_rescaled_queries_and_head(implementation, scaled, tied):
    """Width 4 x the base's, heads 4 x as wide: scores are halved where they are scaled, quartered where not."""
    heads = AttentionSettings(heads=4, scaled=scaled, implementation=implementation)
    mup, standard = (LanguageModel(settings_of(base, attention=heads, tied_head=tied)) for base in (BASE, STANDARD))
    params = jax.tree.map(lambda p: p * 6, mup.init(jax.random.key(0)))  # so that attention is far from uniform
    query = params["periods"]["block_0"]["attention"]["query"]
    factor = 0.5 if scaled else 0.25
    rescaled = jax.tree.map(lambda p: p, params)
    rescaled["periods"]["block_0"]["attention"]["query"] = jax.tree.map(lambda p: p * factor, query)
    expected = jax.jit(standard.logits)(rescaled, batch()) / 4
    plain = jax.jit(standard.logits)(params, batch()) / 4
    found = jax.jit(mup.logits)(params, batch())
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
    assert np.abs(np.asarray(found - plain)).max() > 0.05


def test_decoding_with_a_cache_gives_the_logits_of_the_full_pass_under_mup():
    model, fields = LanguageModel(settings_of(BASE)), batch()
    params = jax.tree.map(lambda p: p * 6, model.init(jax.random.key(0)))
    extend, cache, found = jax.jit(model.extend), model.empty_cache(2, T), []
    for at in range(T):
        part = (fields[name][:, at : at + 1] for name in ("tokens", "positions", "segments"))
        hidden, cache = extend(params, cache, *part, at)
        found.append(model.project(params, hidden))
    np.testing.assert_allclose(jnp.concatenate(found, 1), model.logits(params, fields), atol=1e-4)


def test_scores_keep_their_scale_where_wider_models_have_more_heads():
    more = settings_of(MuPSettings(base_width=32, base_head_dim=32))
    wide, standard = (LanguageModel(each) for each in (more, dataclasses.replace(more, mup=STANDARD)))
    params = wide.init(jax.random.key(0))
    np.testing.assert_allclose(wide.logits(params, batch()) * 4, standard.logits(params, batch()), rtol=1e-5, atol=1e-6)


REFUSED = [
    (
        {"mup": MuPSettings(32)},
        r"^ModelSettings\.mup\.base_head_dim = None: .* width 32 .* use 32 if .* 8 if they have",
    ),
    ({"mup": MuPSettings(32, 12)}, r"^ModelSettings\.mup\.base_width = 32: .* not 2\.66667 heads of 12"),
    (
        {"mup": MuPSettings(96, 8), "feed_forward": FeedForwardSettings(width=130)},
        r"base_width = 96: .* a feed_forward\.width of 97\.5; name the width and the head_dim",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=["no head_dim", "heads", "feed-forward"])
def test_a_base_model_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings_of(**changes)


def test_adafactor_is_refused_with_mup_in_every_stage_that_trains():
    factored, model = OptimizerSettings(name="adafactor"), settings_of(BASE)
    said = (
        r"optimizer\.name = 'adafactor': expected 'adamw' with model\.mup\.base_width, whose rates are Adam's; use it"
    )
    with pytest.raises(UserError, match="^" + said):
        Pretrain(model=dataclasses.replace(model, context=256), optimizer=factored)
    with pytest.raises(UserError, match="^" + said):
        SFT(start="a", model=model, optimizer=factored)
    with pytest.raises(UserError, match="^value_" + said):
        PPO(start="a", reward=RewardSettings(source="b"), model=model, value_optimizer=factored)
    assert Pretrain(optimizer=factored).optimizer == factored


def test_a_recipe_keeps_its_base_and_one_without_the_field_is_a_standard_one():
    recipe = Pretrain(model=dataclasses.replace(settings_of(BASE), context=256, vocab_size=None))
    assert from_json(to_json(recipe)) == recipe
    older = json.loads(to_json(Pretrain()))
    assert older["model"].pop("mup") == {"base_width": None, "base_head_dim": None}
    assert from_json(json.dumps(older)) == Pretrain()


def test_a_mup_model_is_exported_only_in_the_shape_of_its_base(tmp_path):
    with pytest.raises(UserError, match=r"^model\.mup\.base_width = 32: expected None.* cannot be exported"):
        write_model(tmp_path / "out", settings_of(BASE), {})
    base = settings_of(BASE, width=32)
    params = LanguageModel(base).init(jax.random.key(0))
    write_model(tmp_path / "out", base, params)
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_a_model_of_the_bases_shape_computes_the_same_bits_as_without_mup(positions):
    both = [
        LanguageModel(
            settings_of(mup, width=32, positions=PositionSettings(kind=positions)), ComputeSettings(scan_layers=False)
        )
        for mup in (BASE, MuPSettings(32), STANDARD)
    ]
    params = [model.init(jax.random.key(3)) for model in both]
    logits = [np.asarray(jax.jit(model.logits)(p, batch())) for model, p in zip(both, params, strict=True)]
    for other in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, params[other], params[2])
        assert logits[other].tobytes() == logits[2].tobytes()
