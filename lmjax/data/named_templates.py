"""Chat templates that are known by their names, as the models that brought them write conversations.

Each is Jinja; `turn_end` stands for what ends a turn: a token where the tokenizer has it, or else the end of text.
"""

from __future__ import annotations

from typing import NamedTuple


class NamedTemplate(NamedTuple):
    """A template's source, and the token that ends its turns; "" for the end of text."""

    source: str
    turn_end: str = ""

    def source_for(self, turn_end: bool) -> str:
        """The source for a tokenizer that has the token, or has none and ends turns by its end of text."""
        return self.source.replace("turn_end", repr(self.turn_end) if turn_end else "eos_token")


_ALTERNATE = (
    "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('expected user and assistant in turn, the user first') -}}{%- endif -%}"
)
_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)

NAMED: dict[str, NamedTemplate] = {
    # Taori et al. 2023; a system turn takes the place of the preamble
    "alpaca": NamedTemplate(
        f"{{%- if messages[0].role != 'system' -%}}{{{{- {_PREAMBLE!r} -}}}}{{%- endif -%}}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{{- message.content ~ '\n\n' -}}"
        "{%- elif message.role == 'user' -%}{{- '### Instruction:\n' ~ message.content ~ '\n\n' -}}"
        "{%- else -%}{{- '### Response:\n' ~ message.content ~ eos_token -}}"
        "{%- if not loop.last -%}{{- '\n\n' -}}{%- endif -%}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}"
    ),
    # OpenAI 2023; Qwen and SmolLM write it so
    "chatml": NamedTemplate(
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ turn_end ~ '\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
        "<|im_end|>",
    ),
    # Dubey et al. 2024
    "llama3": NamedTemplate(
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        "{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' ~ message.content | trim ~ turn_end -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}",
        "<|eot_id|>",
    ),
    # Gemma Team 2024: no system turn
    "gemma": NamedTemplate(
        "{{- bos_token -}}"
        "{%- for message in messages -%}"
        + _ALTERNATE
        + "{%- set role = 'model' if message.role == 'assistant' else message.role -%}"
        "{{- '<start_of_turn>' ~ role ~ '\n' ~ message.content | trim ~ turn_end ~ '\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}",
        "<end_of_turn>",
    ),
    # Tunstall et al. 2023
    "zephyr": NamedTemplate(
        "{%- for message in messages -%}"
        "{{- '<|' ~ message.role ~ '|>\n' ~ message.content ~ eos_token ~ '\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
    ),
}
