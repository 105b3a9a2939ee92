"""Chat templates in the shapes of published ones, each with a tokenizer of its family."""

import json

from tokenizers import AddedToken

from alol_jax.text.tokenizer_files import CHATML, byte_level, from_directory, save
from tests.text.tokenizer_kinds import byte_level as trained
from tests.text.tokenizer_kinds import llama, llama2, llama3, write

SMOLLM2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- '# Tools' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or \
(message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {{- tool_call.arguments | tojson }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# cuts what was thought, looks back for the last question, leaves loops
QWEN3 = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if message.role != "user" %}
        {%- continue %}
    {%- endif %}
    {%- set ns.last = (messages|length - 1) - loop.index0 %}
    {%- break %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}\
{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"""

# a space on both sides of an answer, which is stripped
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}\
{% set before = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}\
{% set rest = messages %}{% set before = '' %}{% endif %}{% for message in rest %}\
{% set content = before * loop.first + message['content'] %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% else %}\
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

# text on a line of its own between an answer and the token that ends it
WORDY = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '
(over)<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

# tells which tokens are the assistant's, and what day it is
SMOLLM3 = """{{ '<|im_start|>system
Today: ' + strftime_now('%d %B %Y') + '<|im_end|>
' }}{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>
{% endgeneration %}{% else %}{{ '<|im_start|>' ~ message.role ~ '
' ~ message.content ~ '<|im_end|>
' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _chatml(folder):
    named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    backend = trained(400, named)
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    return write(folder, settings, tokenizer__json=backend.to_str())


def _thinking(folder):
    backend = trained(400, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken(n, normalized=False) for n in ("<think>", "</think>")])
    return write(folder, {"eos_token": "<|endoftext|>"}, tokenizer__json=backend.to_str())


def _marked(folder):
    """Tokens that keep the space in front of a word, as Mistral's later ones do."""
    backend = trained(400, ["<s>", "</s>"])
    named = {"eos_token": "</s>", "bos_token": "<s>"}
    return write(folder, named, tokenizer__json=backend.to_str())


def _gemma(folder):
    backend = trained(400, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"])
    named = {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"}
    return write(folder, named, tokenizer__json=backend.to_str())


def _phi3(folder):
    """Tokens that take the white space behind them."""
    llama2(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    names = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
    size = max(state["model"]["vocab"].values()) + 1
    for number, name in enumerate(names):
        token = dict(state["added_tokens"][-1], id=size + number, content=name, rstrip=True)
        state["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    named = {"eos_token": "<|endoftext|>", "bos_token": "<s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def _bytes(folder):
    save(byte_level(), folder)
    return folder


TEMPLATES = {
    "chatml": (CHATML, _bytes, "<|im_end|>"),
    "smollm2": (SMOLLM2, _chatml, "<|im_end|>"),
    "qwen 2.5": (QWEN25, _chatml, "<|im_end|>"),
    "qwen 3": (QWEN3, _thinking, "<|im_end|>"),
    "llama 3": (LLAMA3, llama3, "<|eot_id|>"),
    "gemma": (GEMMA, _gemma, "<end_of_turn>"),
    "mistral": (MISTRAL, llama2, "</s>"),
    "llama 2": (LLAMA2, llama2, "</s>"),
    "llama 2, space of each stretch": (LLAMA2, llama, "</s>"),
    "llama 2, bytes": (LLAMA2, _marked, "</s>"),
    "wordy": (WORDY, _chatml, "<|im_end|>"),
    "phi 3": (PHI3, _phi3, "<|end|>"),
    "zephyr": (ZEPHYR, llama2, "</s>"),
    "smollm3": (SMOLLM3, _chatml, "<|im_end|>"),
}
"""Name -> template, what writes its tokenizer's directory, the token that ends a turn."""


def directory(name, folder):
    """A tokenizer's directory with a chat template."""
    source, make, _ = TEMPLATES[name]
    make(folder)
    (folder / "chat_template.jinja").write_text(source)
    return folder


def tokenizer_with(source, folder, **settings):
    """The tokenizer of ChatML's tokens with this template, or none, in tokenizer_config.json."""
    _chatml(folder)
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text()) | settings
    if source is not None:
        fields["chat_template"] = source
    file.write_text(json.dumps(fields))
    return from_directory(folder)
