"""The models: Flax Linen modules behind plain functions of parameters. No module outside this package imports Flax.

Array names carry their dimensions as letters: B batch, T query time, S key time, D model width, H heads, G query heads
of one key-value head, K head dimension, F feed-forward width, V vocabulary, L layers.

Logical axis names, which `lmjax.parallel.axis_rules` maps to mesh axes. Of parameters: "vocab", "head_vocab", "embed",
"heads", "kv_heads", "head_dim", "mlp", "positions", "segment_types", "norm", "layers", "pair". Of activations: "batch",
"lookup_batch", "time", "stream_time", "act_embed", "act_heads", "act_kv_heads", "act_mlp", "act_vocab".
"""
