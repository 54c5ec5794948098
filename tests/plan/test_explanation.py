"""`lmjax plan --explain`: the lines of a tiny model, and the activations held against what the model constrains."""

import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from lmjax.errors import UserError
from lmjax.model import sharding as sharding_context
from lmjax.model.logit_head import LogitHead
from lmjax.objective.chunks import chunk_logits
from lmjax.parallel.axis_rules import partition_spec
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import batch_sharding
from lmjax.plan import report
from lmjax.plan.target import target_of
from lmjax.settings import (
    PPO,
    AttentionSettings,
    DialogueSettings,
    MeshSettings,
    PPOSettings,
    RewardModel,
    RewardSettings,
)
from tests.tiny import for_slice

GROUPED = AttentionSettings(heads=4, kv_heads=2)
CUBE = MeshSettings(data=2, fsdp=2, tensor=2)
RECIPE = for_slice(width=16, length=32, model__attention=GROUPED, mesh=CUBE, plan__topology="v5e-8")
NOT_CONSTRAINED = {"tokens [B, T]", "logits [B, T, V]"}


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(report, "slice_mesh", lambda target, where: make_mesh(target.recipe.mesh))
    return list(report.explanation(RECIPE))


def test_a_parameter_is_told_with_its_shape_axes_sharding_and_part_on_one_device(lines):
    block = "periods/block_0"
    for line in (
        "tokens: (512, 16), (vocab, embed), <tensor, fsdp>, (256, 8)",
        "positions: (32, 16), (positions, embed), <-, fsdp>, (32, 8)",
        f"{block}/attention/query/kernel: (2, 16, 4, 4), (layers, embed, heads, head_dim), <-, fsdp, tensor, ->, "
        "(2, 8, 2, 4)",
    ):
        assert line in lines


def test_an_activation_is_told_with_its_axes_and_sharding(lines):
    assert lines[lines.index("activation: axes, sharding") + 1 :] == [
        "tokens [B, T]: (batch, time), <data+fsdp, ->",
        "tokens at the look-up [B, T]: (lookup_batch, time), <data, ->",
        "looked-up embeddings [B, T, D]: (lookup_batch, time, embed), <data, -, fsdp>",
        "residual stream [B, T, D]: (batch, stream_time, act_embed), <data+fsdp, tensor, ->",
        "a branch's input [B, T, D]: (batch, time, act_embed), <data+fsdp, -, ->",
        "queries [B, T, H, K]: (batch, time, act_heads, None), <data+fsdp, -, tensor, ->",
        "keys and values [B, T, Hkv, K]: (batch, time, act_kv_heads, None), <data+fsdp, -, tensor, ->",
        "feed-forward [B, T, F]: (batch, time, act_mlp), <data+fsdp, -, tensor>",
        "logits [B, T, V]: (batch, time, act_vocab), <data+fsdp, -, tensor>",
    ]


def test_the_activations_are_those_that_the_model_constrains(monkeypatch):
    constrain, found = sharding_context.constrain, set()

    def recorded(x, *logical):
        found.add(logical)
        return constrain(x, *logical)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("lmjax.") and getattr(module, "constrain", None) is constrain:
            monkeypatch.setattr(module, "constrain", recorded)
    target_of(RECIPE).lower(make_mesh(RECIPE.mesh))
    told = {axes for name, axes in report.ACTIVATIONS.items() if name not in NOT_CONSTRAINED}
    assert told == {axes for axes in found if axes[0] in ("batch", "lookup_batch")}


def test_what_is_told_of_batch_and_logits_is_what_a_step_has():
    mesh = make_mesh(RECIPE.mesh)
    assert batch_sharding(mesh).spec == partition_spec(report.ACTIVATIONS["tokens [B, T]"])
    shapes = {("vocab", "act_embed"): (512, 16), report.ACTIVATIONS["a branch's input [B, T, D]"]: (8, 32, 16)}
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, partition_spec(axes)))
        for axes, shape in shapes.items()
    ]
    made = (
        jax.jit(lambda head, hidden: chunk_logits(LogitHead(head), hidden, 512)[0])
        .lower(*arrays)
        .compile()
        .output_shardings
    )
    logits = NamedSharding(mesh, partition_spec(report.ACTIVATIONS["logits [B, T, V]"]))
    assert made.is_equivalent_to(logits, 3)


def test_a_stage_of_conversations_is_explained_and_one_of_several_models_is_refused(monkeypatch):
    monkeypatch.setattr(report, "slice_mesh", lambda target, where: make_mesh(target.recipe.mesh))
    common = {"start": "a", "model": RECIPE.model, "mesh": RECIPE.mesh, "plan": RECIPE.plan}
    common["dialogue"] = DialogueSettings(sequence_length=16)
    small = PPOSettings(response_tokens=16)
    lines = list(report.explanation(RewardModel(**common)))
    assert any(line.startswith("trunk/tokens: ") for line in lines) and any("scalar/kernel" in line for line in lines)
    scorer = RewardModel(name="r", **common)
    with pytest.raises(UserError, match="'ppo' trains several models"):
        list(report.explanation(PPO(reward=RewardSettings(source="r"), ppo=small, **common), (scorer,)))
