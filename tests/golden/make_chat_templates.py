"""Writes chat_templates.json: conversations as transformers' apply_chat_template writes them.

    pip install transformers jinja2    # 5.24, 3.1.6
    python tests/golden/make_chat_templates.py

The templates are in the manner of published ones. Those of lmjax's own stages are the ones that `as_jinja` makes.
"""

import json
from pathlib import Path

import tokenizers
import transformers

from lmjax.interop.chat_template import as_jinja
from lmjax.settings import TemplateSettings

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATES = {
    "tags": """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
    {{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{% endif %}
<|im_start|>{{ message.role }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    "brackets": """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' -}}
    {%- else -%}
        {%- generation -%}{{- ' ' + message['content'] + ' ' + eos_token -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}""",
    "objects": """{% set state = namespace(turns=0) %}
{% if tools is defined and tools is not none %}tools{% endif %}
{% for message in messages %}
{% if state.turns >= 2 %}{% break %}{% endif %}
{% set state.turns = state.turns + 1 %}
{{ message | tojson }} {{ {"a": [1, "<é>"]} | tojson(indent=2) }} {{ unk_token }}{{ absent_token }}
{% endfor %}
{% if strftime_now is defined %}{{ strftime_now('%%') }}{% endif %}""",
}
STAGES = {
    "default": TemplateSettings(),
    "odd": TemplateSettings(
        system="[S'] {text}\n",
        user='{{ "Q" }}\t{text}\r\n{% raw %}',
        assistant="A\\n:😀",
        answer=" {text} %}#",
        between="é\n\n",
    ),
    "bare": TemplateSettings(system="{text}", user="{text}", answer="{text}", between=""),
}
PUBLISHED = {  # as the models' tokenizer_config.json has them
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "zephyr": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
}
CONVERSATIONS = [
    [("user", "Is it?")],
    [("user", " Is it?\n"), ("assistant", "Yes "), ("user", "Why {{ 1 }}?")],
    [("system", "Be brief."), ("user", "Is it?"), ("assistant", "'Ja' \\ \"é\"")],
    [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d\n")],
]


def main() -> None:
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    reader = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, **TOKENS)
    made = {"tokens": TOKENS, "templates": {}, "stages": {}, "published": {}}
    templates = [("templates", name, source) for name, source in TEMPLATES.items()]
    templates += [("stages", name, as_jinja(settings)) for name, settings in STAGES.items()]
    templates += [("published", name, source) for name, source in PUBLISHED.items()]
    for kind, name, source in templates:
        texts = []
        for turns in CONVERSATIONS:
            if name == "gemma" and turns[0][0] == "system":
                continue  # which it refuses
            messages = [{"role": role, "content": text} for role, text in turns]
            opened = turns[-1][0] == "user"
            text = reader.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=opened
            )
            texts.append({"messages": messages, "opened": opened, "text": text})
        made[kind][name] = {"template": source, "texts": texts}
    path = Path(__file__).with_name("chat_templates.json")
    path.write_text(json.dumps(made, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
