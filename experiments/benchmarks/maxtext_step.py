"""MaxText's step for the shapes of `plan_*.py`, compiled by its own `train_compile`: cycles, memory, collectives.

It wants a Python 3.12 of its own, and compiles for minutes a case:

    python3.12 -m venv maxtext
    maxtext/bin/pip install jax==0.12.0.1 flax==0.12.12 optax==0.2.8 orbax-checkpoint==0.12.8 aqtp array-record chex \
        datasets drjax gcsfs google-cloud-storage google-cloud-monitoring grain jaxtyping jinja2 jsonlines \
        ml-collections ml-goodput-measurement omegaconf pathwaysutils pillow pydantic sentencepiece sympy tensorboardx \
        tiktoken tokamax transformers qwix blobfile cloud-accelerator-diagnostics google-cloud-mldiagnostics
    maxtext/bin/pip install --no-deps libtpu==0.0.52 maxtext==0.2.5
    export PYTHONPATH=. JAX_PLATFORMS=cpu
    maxtext/bin/python experiments/benchmarks/maxtext_step.py gpt3_6b --remat minimal --vector-memory 48

Options of the compiler reach MaxText by its own setting `compile_xla_flags`, which it hands to the compiler as lmjax
does its own. The compiled text is counted as that of lmjax's steps is, by `lmjax/plan/hlo.py`. `maxtext_search.py`
looks for the best of these options.
"""

import argparse
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
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
GPT = (  # sizes of which MaxText has no model: the settings of its gpt3-6b
    *("decoder_block=gpt3", "vocab_size=50304", "mlp_activations=['gelu']", "logits_via_embedding=true"),
    *("normalize_embedding_logits=false", "use_iota_embed=true", "fused_qkv=true", "opt_type=adam_pax"),
)
GPT_13B = (
    *(*GPT, "base_emb_dim=5120", "base_num_query_heads=40", "base_num_kv_heads=40", "head_dim=128"),
    *("base_mlp_dim=20480", "base_num_decoder_layers=40", "trainable_position_size=2048"),
    *("compile_topology=v5p-128", "max_target_length=2048", "per_device_batch_size=4"),
)
CASES = {
    "gpt2_124m": (
        *(*GPT, "base_emb_dim=768", "base_num_query_heads=12", "base_num_kv_heads=12", "head_dim=64"),
        *("base_mlp_dim=3072", "base_num_decoder_layers=12", "trainable_position_size=1024"),
        *("compile_topology=v5e-16", "ici_data_parallelism=16", "ici_fsdp_parallelism=1"),
        *("max_target_length=1024", "per_device_batch_size=16"),
    ),
    "gpt3_6b": (
        *("model_name=gpt3-6b", "compile_topology=v5e-64", "ici_fsdp_parallelism=64"),
        *("max_target_length=2048", "per_device_batch_size=2"),
    ),
    "gpt3_22b": (
        *("model_name=gpt3-22b", "compile_topology=v5e-256", "ici_fsdp_parallelism=256"),
        *("max_target_length=1024", "per_device_batch_size=4"),
    ),
    "gpt3_175b": (
        *("model_name=gpt3-175b", "compile_topology=v5p-1024", "ici_fsdp_parallelism=512"),
        *("max_target_length=2048", "per_device_batch_size=2"),
    ),
    "llama2_7b": (
        *("model_name=llama2-7b", "compile_topology=v5p-64", "ici_fsdp_parallelism=32"),
        *("max_target_length=2048", "per_device_batch_size=2"),
    ),
    "gpt3_13b": (*GPT_13B, "ici_fsdp_parallelism=64"),
    "gpt3_13b:tensor": (*GPT_13B, "ici_fsdp_parallelism=16", "ici_tensor_parallelism=4"),
    "llama3_8b": (
        *("model_name=llama3-8b", "compile_topology=v5p-64", "ici_fsdp_parallelism=32"),
        *("max_target_length=8192", "per_device_batch_size=2"),
    ),
    "gpt3_2700m": (
        *(*GPT, "base_emb_dim=2560", "base_num_query_heads=32", "base_num_kv_heads=32", "head_dim=80"),
        *("base_mlp_dim=10240", "base_num_decoder_layers=32", "trainable_position_size=2048"),
        *("compile_topology=v6e-64", "ici_fsdp_parallelism=64"),
        *("max_target_length=2048", "per_device_batch_size=4"),
    ),
    "llama2_7b:32k": (
        *("model_name=llama2-7b", "compile_topology=v5p-128", "ici_fsdp_parallelism=16", "ici_context_parallelism=4"),
        *("max_target_length=32768", "per_device_batch_size=0.25"),
    ),
}
NEVER_WINDOWED = 1_000_000  # MiB: no product is that large


@dataclass(frozen=True)
class Choice:
    """What MaxText is given beside a case.

    The remat policy, MiB of vector memory, products in windows, scanned layers, and whether one kernel makes all
    gradients of attention.
    """

    remat: str
    vector_memory: int = 48
    windowed: bool = False
    scanned: bool = True
    fused: bool = False

    def settings(self) -> tuple[str, ...]:
        flags = [f"--xla_tpu_scoped_vmem_limit_kib={1024 * self.vector_memory}"]
        if not self.windowed:
            flags.append(f"--xla_jf_spmd_threshold_for_windowed_einsum_mib={NEVER_WINDOWED}")
        scan = f"scan_layers={str(self.scanned).lower()}"
        fused = f"sa_use_fused_bwd_kernel={str(self.fused).lower()}"
        return f"remat_policy={self.remat}", scan, fused, f"compile_xla_flags={' '.join(flags)}"


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


def figures(compiled: Any, text: str) -> dict[str, Any]:
    """Of one device: Gcycles, GiB at the peak, GiB of the collectives' results and that it sends, by kind, too."""
    spent = costs(parse(text))
    gib, sent, count = Counter[str](), Counter[str](), Counter[str]()
    for each in spent.collectives:
        gib[each.kind] += each.bytes / GIB
        sent[each.kind] += each.sent / GIB
        count[each.kind] += each.count
    return {
        "gcycles": spent.cycles / 1e9,
        "peak_hbm_gib": compiled.memory_analysis().peak_memory_in_bytes / GIB,
        "collective_gib": sum(gib.values()),
        "collective_sent_gib": sum(sent.values()),
        "gib_by_kind": gib,
        "sent_gib_by_kind": sent,
        "count_by_kind": count,
        "unknown_loops": spent.unknown_loops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--remat", required=True, metavar="POLICY", help="MaxText's remat_policy")
    parser.add_argument("--vector-memory", type=int, default=48, metavar="MIB", help="libtpu's own default is 16")
    parser.add_argument("--windowed", action="store_true", help="as libtpu comes; else no product is cut into windows")
    parser.add_argument("--unscanned", action="store_true", help="every layer compiled apart")
    parser.add_argument("--fused", action="store_true", help="one kernel for all gradients of attention")
    parser.add_argument("--hlo", type=Path, metavar="FILE", help="for the compiled text")
    options = parser.parse_args()
    choice = Choice(options.remat, options.vector_memory, options.windowed, not options.unscanned, options.fused)
    compiled = compiled_step((*CASES[options.case], *choice.settings()))
    text = compiled.as_text()
    if options.hlo is not None:
        options.hlo.write_text(text, encoding="utf-8")
    print(json.dumps({"case": options.case, **asdict(choice), **figures(compiled, text)}))


if __name__ == "__main__":
    main()
