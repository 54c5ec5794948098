"""Which fields of a recipe may change between two runs of one workdir: tables that the kinds of stages share.

Every field of every stage is of one kind:

- free: the rest of the run computes the same, up to rounding;
- consequential: the rest of the run is another one; taken with --force;
- breaking: the weights, their optimizer state or their tokens do not fit any more; refused always.
"""

from __future__ import annotations

from enum import Enum

EARLIER = "earlier_batches"  # the loader's field that a change of batch sizes fills in


class Kind(Enum):
    FREE = "free"
    CONSEQUENTIAL = "consequential"
    BREAKING = "breaking"


Table = dict[Kind, tuple[str, ...]]

# An entry that ends with a dot stands for all fields below it.
TRAINING: Table = {
    Kind.FREE: (
        *("name", "reasons", "mesh.", "plan.", "evaluation.", "checkpoint.", "log."),
        *("train.microbatches", "train.abort_after_skipped"),
        *("compute.remat", "compute.loss_chunk", "compute.attention_block", "compute.vector_memory"),
        "compute.unroll_layers",
    ),
    Kind.CONSEQUENTIAL: (
        *("train.steps", "train.seed", "train.z_loss", "train.label_smoothing", "compute.dtype"),
        *("optimizer.learning_rate", "optimizer.schedule.", "optimizer.b1", "optimizer.b2", "optimizer.eps"),
        *("optimizer.bias_correction", "optimizer.parameter_scale", "optimizer.weight_decay"),
        *("optimizer.decay_embeddings", "optimizer.clip_norm"),
    ),
    Kind.BREAKING: ("optimizer.name", "optimizer.state_dtype", "compute.scan_layers"),
}
DIALOGUE: Table = {
    Kind.FREE: ("dialogue.validation.", "dialogue.prefetch", f"dialogue.{EARLIER}.", "model."),
    Kind.CONSEQUENTIAL: (
        *("dialogue.train.", "dialogue.template.", "dialogue.sequence_length", "dialogue.batch_size"),
        *("dialogue.packing", "dialogue.too_long", "dialogue.prompt_weight", "dialogue.most_answers"),
        *("dialogue.shuffle", "dialogue.seed", "epochs"),
    ),
    Kind.BREAKING: ("start",),
}
