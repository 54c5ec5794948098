"""The table from logical to mesh axes: it covers the model, and refuses collisions."""

import jax
import pytest
from jax.sharding import PartitionSpec

from lmjax.errors import UserError
from lmjax.model.language_model import LanguageModel
from lmjax.parallel import axis_rules
from lmjax.parallel.axis_rules import RULES, Rule, flax_rules, partition_spec
from lmjax.parallel.mesh import AXES
from lmjax.settings import ModelSettings, PositionSettings


def test_axes_become_the_tables_mesh_axes():
    assert partition_spec(("batch", "time", None)) == PartitionSpec(("replica", "data", "fsdp"), "sequence", None)
    assert partition_spec(("layers", "embed", "mlp")) == PartitionSpec(None, "fsdp", "tensor")


def test_an_unknown_axis_names_the_nearest():
    with pytest.raises(UserError, match="'embd': not in the table of axis rules; did you mean 'embed'"):
        partition_spec(("embd",))


def test_two_axes_of_one_array_on_one_mesh_axis_are_refused():
    with pytest.raises(UserError, match=r"'heads' and 'mlp' of one array .* both go to mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"))


def test_a_table_that_makes_a_parameter_collide_is_refused(monkeypatch):
    monkeypatch.setitem(axis_rules.RULES, "mlp", Rule(("fsdp",), "a mistake"))
    with pytest.raises(UserError, match="'embed' and 'mlp'"):
        partition_spec(("embed", "mlp"))


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(vocab_size=64, tied_head=False),
        ModelSettings(vocab_size=64, positions=PositionSettings(kind="relative")),
    ],
)
def test_every_parameter_of_a_model_has_a_sharding_and_every_matrix_is_cut_by_fsdp(settings):
    axes = jax.tree.leaves(LanguageModel(settings).logical_axes(), is_leaf=lambda leaf: isinstance(leaf, tuple))
    specs = {names: partition_spec(names) for names in axes}
    assert all("fsdp" in specs[names] for names in axes if "embed" in names)
    assert any("tensor" in spec for spec in specs.values())


def test_the_table_names_only_axes_of_the_mesh_and_gives_its_reasons():
    assert all(set(rule.mesh_axes) <= set(AXES) and rule.reason for rule in RULES.values())
    assert dict(flax_rules()) == {name: rule.mesh_axes or None for name, rule in RULES.items()}
