"""lmjax: a JAX/Flax, TPU-first training stack for language models."""

__version__ = "0.1.0"
