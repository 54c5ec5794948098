"""MaxText's step for the shapes of `plan_*.py`, compiled by its own `train_compile`: cycles, memory, collectives.

It wants a Python 3.12 of its own, and compiles for minutes a case:

    python3.12 -m venv maxtext
    maxtext/bin/pip install jax==0.12.0.1 flax==0.12.12 optax==0.2.8 orbax-checkpoint==0.12.8 aqtp array-record chex \
        datasets drjax gcsfs google-cloud-storage google-cloud-monitoring grain jaxtyping jinja2 jsonlines \
        ml-collections ml-goodput-measurement omegaconf pathwaysutils pillow pydantic sentencepiece sympy tensorboardx \
        tiktoken tokamax transformers qwix blobfile cloud-accelerator-diagnostics google-cloud-mldiagnostics
    maxtext/bin/pip install --no-deps libtpu==0.0.52 maxtext==0.2.5
    export PYTHONPATH=. JAX_PLATFORMS=cpu
    maxtext/bin/python experiments/benchmarks/maxtext_step.py gpt3_6b [--as-it-comes] [FILE.hlo [SETTING=VALUE ...]]

MaxText gets the vector memory that lmjax's recipe of the case takes (VECTOR_MEMORY), by its own setting
`compile_xla_flags`, which it hands to the compiler as lmjax does; `--as-it-comes` leaves libtpu's 16 MiB instead.
The compiled text is counted as that of lmjax's steps is, by `lmjax/plan/hlo.py`.
"""

import json
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmjax.plan.hlo import costs, parse

GIB = 2**30
COMMON = (
    *("run_name=plan", "base_output_directory=/tmp/maxtext", "enable_checkpointing=false", "log_config=false"),
    *("dataset_type=synthetic", "enable_dropout=false", "override_model_config=true", "compile_topology_num_slices=1"),
    *("attention=flash", "weight_dtype=float32", "dtype=bfloat16", "compiled_trainstep_file=kept"),
)
CASES = {  # with the remat policy that takes the fewest cycles among those that fit
    "gpt2_124m": (
        *("decoder_block=gpt3", "base_emb_dim=768", "base_num_query_heads=12", "base_num_kv_heads=12"),
        *("base_mlp_dim=3072", "base_num_decoder_layers=12", "head_dim=64", "vocab_size=50304"),
        *("mlp_activations=['gelu']", "logits_via_embedding=true", "normalize_embedding_logits=false"),
        *("use_iota_embed=true", "fused_qkv=true", "opt_type=adam_pax", "trainable_position_size=1024"),
        *("compile_topology=v5e-16", "ici_data_parallelism=16", "ici_fsdp_parallelism=1"),
        *("max_target_length=1024", "per_device_batch_size=16", "remat_policy=minimal"),
    ),
    "gpt3_6b": (
        *("model_name=gpt3-6b", "compile_topology=v5e-64", "ici_fsdp_parallelism=64"),
        *("max_target_length=2048", "per_device_batch_size=2", "remat_policy=minimal"),
    ),
    "gpt3_22b": (
        *("model_name=gpt3-22b", "compile_topology=v5e-256", "ici_fsdp_parallelism=256"),
        *("max_target_length=1024", "per_device_batch_size=4", "remat_policy=save_dot_except_mlp"),
    ),
    "gpt3_175b": (
        *("model_name=gpt3-175b", "compile_topology=v5p-1024", "ici_fsdp_parallelism=512"),
        *("max_target_length=2048", "per_device_batch_size=2", "remat_policy=minimal"),
    ),
}


# MiB of a TPU's vector memory that one fusion may use, as in lmjax's recipe for the case; libtpu's default is 16.
VECTOR_MEMORY = {"gpt2_124m": 48, "gpt3_6b": 32, "gpt3_22b": 48, "gpt3_175b": 48}


def settings_of(name: str, *, as_it_comes: bool = False) -> tuple[str, ...]:
    """MaxText's settings for a case, with lmjax's vector memory unless it is taken `as_it_comes`."""
    flags = f"compile_xla_flags=--xla_tpu_scoped_vmem_limit_kib={1024 * VECTOR_MEMORY[name]}"
    return CASES[name] if as_it_comes else (*CASES[name], flags)


def compiled_step(settings: tuple[str, ...]) -> Any:
    """MaxText's compiled training step, kept where it would have been written to a file."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}
    from maxtext.trainers.pre_train import train_compile

    kept: list[Any] = []
    train_compile.save_compiled = lambda compiled, name: kept.append(compiled)
    found = find_spec("maxtext.configs")
    assert found is not None and found.submodule_search_locations is not None
    base = Path(found.submodule_search_locations[0]) / "base.yml"
    train_compile.main(["train_compile", str(base), *COMMON, *settings])
    return kept[0]


def main(name: str, *rest: str) -> None:
    as_it_comes = rest[:1] == ("--as-it-comes",)
    file, *changes = rest[as_it_comes:] or (None,)
    settings = (*settings_of(name, as_it_comes=as_it_comes), *changes)
    compiled = compiled_step(settings)
    text = compiled.as_text()
    if file is not None:
        Path(file).write_text(text, encoding="utf-8")
    spent = costs(parse(text))
    gib, sent, count = Counter[str](), Counter[str](), Counter[str]()
    for each in spent.collectives:
        gib[each.kind] += each.bytes / GIB
        sent[each.kind] += each.sent / GIB
        count[each.kind] += each.count
    about = {
        "case": name,
        "settings": settings[len(CASES[name]) :],
        "gcycles": spent.cycles / 1e9,
        "peak_hbm_gib": compiled.memory_analysis().peak_memory_in_bytes / GIB,
        "collective_gib": sum(gib.values()),
        "collective_sent_gib": sum(sent.values()),
        "gib_by_kind": gib,
        "sent_gib_by_kind": sent,
        "count_by_kind": count,
        "unknown_loops": spent.unknown_loops,
    }
    print(json.dumps(about))


if __name__ == "__main__":
    main(*sys.argv[1:])
