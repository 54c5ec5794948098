"""Which part of a step an operation's cycles count for, by names as the TPU compiler writes them."""

import pytest

from lmjax.plan.hlo import Source
from lmjax.plan.parts import parts

FORWARD, BACKWARD = "jit(step)/jvp(OneStack)/stack", "jit(step)/transpose(jvp(OneStack))/stack"
BLOCK = "stack._layers/while/body/closed_call/checkpoint/rematted_computation/periods/block_0"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (f"{BACKWARD}/{BLOCK}/block_0._before/feed_forward_norm/reduce_sum", "norms"),
        (f"{FORWARD}/final_norm/convert_element_type", "norms"),
        (f"{FORWARD}/{BLOCK}/attention/transpose", "attention's rest"),
        (f"{BACKWARD}/{BLOCK}/cross_attention/convert_element_type", "attention's rest"),
        (f"{BACKWARD}/{BLOCK}/feed_forward/mul", "activations"),
        (f"{FORWARD}/stack._layers/while/body/jit(dynamic_update_index_in_dim)/dynamic_update_slice", "layers' slices"),
        (f"{BACKWARD}/stack._layers/while/body/jit(dynamic_index_in_dim)/squeeze", "layers' slices"),
        (f"{FORWARD}/{BLOCK}/add", "residuals and embeddings"),
        ("jit(step)/transpose(jvp(TwoStacks))/encoder/add", "residuals and embeddings"),
        ("jit(step)/jvp()/while/body/closed_call/reduce_sum", "loss"),
        ("select_n", "optimizer and casts"),
        ("", "optimizer and casts"),
    ],
)
def test_an_operation_counts_for_the_part_of_its_name(name, part):
    assert parts({Source("fusion", name, False): 7}) == {part: 7}


def test_products_and_copies_count_for_themselves_wherever_they_are():
    norm = f"{FORWARD}/final_norm/convert_element_type"
    found = parts({Source("fusion", norm, True): 5, Source("copy", norm, False): 3, Source("copy-start", "", False): 4})
    assert found == {"copies": 7, "products": 5} and list(found) == ["copies", "products"]
