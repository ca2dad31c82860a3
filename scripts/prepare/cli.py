"""The command line of preparation.

    python scripts/prepare FILE.jsonl --model DIR --cache DIR [--special-tokens as_text|reject|allow]
                           [--train-on assistant|all] [--thoughts refuse|keep] [--add-bos auto|true|false]
                           [--chat-template-kwargs JSON] [--ignore-keys JSON] [--show N]

Standard output ends with one JSON line: {"cache", "documents", "tokens", "target_tokens", "format", "reused"}. What is
said on the way goes to standard error. Exit code 0, or 2 for a mistake in options, data or the model's files.
"""

import argparse
import hashlib
import importlib.metadata
import json
import sys
import traceback

from prepare import cache
from prepare.errors import UserError, is_panic, printable
from prepare.formats import CHAT_FORMATS
from prepare.model_files import ModelFiles
from prepare.pipeline import first_format, prepare_file
from prepare.rules import Rules
from prepare.show import samples
from prepare.template import ChatTemplate


def _arguments(argv):
    parser = argparse.ArgumentParser(
        prog="prepare", description="Tokenises a JSONL file into the token cache that moetune reads."
    )
    parser.add_argument("file", help="JSONL file; its format is recognised")
    parser.add_argument("--model", help="Hugging Face folder with tokenizer.json; a pre-tokenised file needs none")
    parser.add_argument("--cache", required=True, help="folder of token caches")
    parser.add_argument(
        "--special-tokens",
        choices=("as_text", "reject", "allow"),
        default="auto",
        help="what text of special tokens inside content becomes (default: as_text, and an error where a text was"
        " rendered already)",
    )
    parser.add_argument(
        "--train-on",
        choices=("assistant", "all"),
        default="assistant",
        help="targets in conversations, prompt/completion and alpaca (default: assistant)",
    )
    parser.add_argument(
        "--thoughts",
        choices=("refuse", "keep"),
        default="refuse",
        help="what to do where the chat template takes thoughts out of a trained answer (default: refuse)",
    )
    parser.add_argument(
        "--add-bos",
        choices=("auto", "true", "false"),
        default="auto",
        help="whether documents begin with bos_token (default: texts, as tokenizer.json puts it)",
    )
    parser.add_argument(
        "--chat-template-kwargs", type=_json_of(dict), default={}, metavar="JSON", help="variables of the chat template"
    )
    parser.add_argument(
        "--ignore-keys",
        type=_json_of(list),
        default=[],
        metavar="JSON",
        help="keys of lines and messages that are as if they were not there",
    )
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the first N documents with their trained tokens marked"
    )
    return parser.parse_args(argv)


def _json_of(kind):
    def parse(text):
        value = json.loads(text)
        if not isinstance(value, kind) or (kind is list and not all(isinstance(v, str) for v in value)):
            raise ValueError
        text.encode()
        return value

    parse.__name__ = "JSON"  # argparse says "invalid JSON value"
    return parse


def _rules(options):
    return Rules(
        options.train_on,
        options.special_tokens,
        options.thoughts,
        options.add_bos,
        options.chat_template_kwargs,
        frozenset(options.ignore_keys),
    )


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _sources(options, rules, name, model):
    """Everything that shapes the tokens."""
    sources = {
        "data": cache.sha256_file(options.file),
        "format": name,
        "code": cache.code_digest(),
        **rules.ingredients(),
    }
    for package in ("tokenizers", "jinja2"):
        sources[package] = importlib.metadata.version(package)
    if model:
        sources |= {
            "tokenizer": _digest(model.tokenizer_text),
            "template": _digest((model.template or "").encode()),
            "tool_template": _digest((model.tool_template or "").encode()),
            "asks_for_bos": str(model.asks_for_bos),
            "bos": model.bos or "",
            "eos": model.eos or "",
            "model_vocab": str(model.model_vocab),
        }
        if model.template and name in (*CHAT_FORMATS, "alpaca"):
            template = ChatTemplate(model.template + (model.tool_template or ""), model.bos, model.eos)
            if template.uses_date:
                sources["date"] = template.today.isoformat()
    return sources


def run(options):
    if options.show < 0:
        raise UserError(f"--show {options.show}: a number of documents, 0 or more")
    name = first_format(options.file)
    _say(f"{options.file}: format {name}")
    model = None
    if options.model is not None:
        model = ModelFiles(options.model)
    elif name != "input_ids/labels":
        raise UserError(
            f"{options.file}: format {name} needs a tokenizer\n  fix: add --model DIR, a Hugging Face folder with"
            " tokenizer.json"
        )
    if name in CHAT_FORMATS and model.template is None:
        raise UserError(
            f"{options.model}: the model has no chat template, and {options.file} holds conversations\n"
            "  fix: put the template into chat_template.jinja there, or write the data as prompt/completion or text"
        )
    rules = _rules(options)
    sources = _sources(options, rules, name, model)
    key = cache.key_of(sources)
    path = cache.cache_path(options.cache, key)
    metadata = cache.read_metadata(path, key)
    reused = metadata is not None
    if reused:
        _say(f"the cache {path} is up to date")
    else:
        result = prepare_file(options.file, model, name, rules)
        metadata = {
            "moetune_tokens": cache.FORMAT_VERSION,
            "documents": str(result.documents),
            "tokens": str(result.tokens),
            "target_tokens": str(result.target_tokens),
            "format": name,
            "vocab_size": str(result.vocab_size),
            "notes": json.dumps(result.notes),
            "key": key,
            "sources": json.dumps(sources, sort_keys=True, ensure_ascii=False),
        }
        try:
            cache.write(path, result.chunks, metadata)
        except OSError as e:
            raise UserError(
                f"{path}: cannot be written: {e.strerror}\n  fix: choose another --cache folder or free some space"
            ) from None
    for note in json.loads(metadata["notes"]):
        _say(f"note: {note}")
    for text in samples(path, model.tokenizer if model else None, options.show, sys.stdout.isatty()):
        print(text)
    counts = {k: int(metadata[k]) for k in ("documents", "tokens", "target_tokens")}
    print(json.dumps({"cache": str(path), **counts, "format": name, "reused": reused}))


def main(argv=None):
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its number
    try:
        run(_arguments(argv))
        return 0
    except UserError as e:
        _say(f"error: {e}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; nothing was written")
        return 130
    except MemoryError:
        _say("error: the machine's memory does not suffice\n  fix: split long lines, or use a machine with more of it")
        return 2
    except BaseException as e:
        if not is_panic(e) and not isinstance(e, Exception):
            raise
        at = traceback.extract_tb(e.__traceback__)[-1]
        _say(f"error: a defect of moetune: {type(e).__name__} at {at.filename}:{at.lineno}: {printable(str(e), 200)}")
        return 1
