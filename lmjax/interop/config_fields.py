"""The fields of a config.json, each asked for by name, so that none is passed over in silence.

In: the object in the file. Out: checked values; or a UserError that names the file, the field, its value, what lmjax
supports and what to do.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from lmjax.errors import UserError, shortened
from lmjax.fields import fits
from lmjax.settings import ModelSettings

# Fields that say nothing about the logits of the language model: names and versions, token ids, how generate() samples,
# heads that are not the language model's, and two ways of computing the same numbers.
_NEUTRAL = """
    _attn_implementation _commit_hash _name_or_path architectures dtype torch_dtype transformers_version
    transformers.js_config transformers_weights task_specific_params is_llama_config
    bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id
    tokenizer_class prefix
    use_cache output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate
    torchscript use_bfloat16 gradient_checkpointing chunk_size_feed_forward remove_invalid_values is_decoder
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences repetition_penalty suppress_tokens temperature tf_legacy_loss top_k top_p typical_p
    finetuning_task id2label label2id num_labels problem_type predict_special_tokens
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    cache_implementation pretraining_tp reorder_and_upcast_attn
    """
SAYS_NOTHING = frozenset(_NEUTRAL.split())
# Fields of any model type that change what is computed, with the only value that lmjax computes.
ONLY: dict[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "tie_encoder_decoder": False,
}

TYPO = 0.85  # how alike two names are of which one is likely the other, mistyped

# transformers calls the tanh approximation "gelu_new" and the exact function "gelu".
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


# What most types call the sizes of a model.
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def write_sizes(settings: ModelSettings) -> dict[str, Any]:
    """The fields that `ConfigFields.sizes` reads."""
    return {theirs: getattr(settings, ours) for ours, theirs in SIZES.items()}


def name_of(settings: ModelSettings, meanings: Mapping[str, str]) -> str:
    """The activation's name, or one that reading back what was written will find to be another's."""
    names = {meaning: name for name, meaning in list(meanings.items())[::-1]}
    return names.get(settings.feed_forward.activation, next(iter(meanings)))


class ConfigFields:
    """The fields of one config.json; `where` names it in errors."""

    def __init__(self, values: Mapping[str, Any], where: object) -> None:
        self._values, self._where, self._asked = values, where, set(SAYS_NOTHING)

    def error(self, name: str, expected: str, fix: str) -> UserError:
        found = shortened(self._values[name]) if name in self._values else "(absent)"
        return UserError(f"{self._where}: {shortened(name)[1:-1]} = {found}: expected {expected}; {fix}")

    def get(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        return self._values.get(name, default)

    def size(self, name: str) -> int:
        """A whole number above 0, which has to be there."""
        value = self.get(name, None)
        if not fits(int, value) or value <= 0:
            raise self.error(name, "a whole number above 0", "take it from the model's own config.json")
        return value

    def sizes(self) -> dict[str, Any]:
        """The sizes of SIZES by the names of ModelSettings, all of which have to be there."""
        return {ours: self.size(theirs) for ours, theirs in SIZES.items()}

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.get(name, None) is not None

    def says(self, name: str) -> bool:
        """Whether the field is there, be it null."""
        self._asked.add(name)
        return name in self._values

    def divisor(self, name: str, of: str) -> int:
        """A size that divides the size `of`."""
        value, whole = self.size(name), self.size(of)
        if whole % value:
            raise self.error(name, f"a divisor of {of} = {whole}", "take both from the model's own config.json")
        return value

    def positive(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if not fits(float, value) or value <= 0:
            raise self.error(name, "a number above 0", f"the default is {default}")
        return float(value)

    def fraction(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if not fits(float, value) or not 0 <= value < 1:
            raise self.error(name, "a fraction in [0, 1)", f"the default is {default}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise self.error(name, "true or false", f"the default is {json.dumps(default)}")
        return value

    def choice(self, name: str, default: str, meanings: Mapping[str, Any]) -> Any:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in meanings:
            raise self.error(name, f"one of {', '.join(meanings)}", "lmjax has no other")
        return meanings[value]

    def expect(self, name: str, only: Any) -> None:
        """The field is absent, or has the one value that lmjax computes."""
        value = self.get(name, only)
        if value is not None and value != only:
            raise self.error(name, json.dumps(only), "lmjax does not compute anything else")

    def finish(self) -> tuple[str, ...]:
        """The fields that were not asked for and change nothing: null, or private, as transformers names its notes.

        Raises UserError at the first other field that was not, or that asks for what no model type has.
        """
        for name in ONLY.keys() - self._asked:
            self.expect(name, ONLY[name])
        left = [name for name in self._values if name not in self._asked]
        for name in left:
            if not name.startswith("_") and self._values[name] is not None:
                typo = difflib.get_close_matches(name, sorted(self._asked - SAYS_NOTHING), n=1, cutoff=TYPO)
                fix = "".join(f"did you mean {known!r}? " for known in typo) + "if it changes no logits, remove it"
                raise self.error(name, "no such field, which lmjax does not know", fix)
        return tuple(left)
