"""The command line of preparation.

    python scripts/prepare FILE... --model DIR --cache DIR [--special-tokens as_text|reject|allow]
                           [--train-on assistant|all] [--thoughts refuse|keep] [--add-bos auto|true|false]
                           [--chat-template-kwargs JSON] [--ignore-keys JSON] [--show N] [--workers N]

Standard output ends with one JSON line: {"cache", "documents", "tokens", "target_tokens", "format", "reused"}, for
several files {"files": [such objects]}. What is said on the way goes to standard error. Exit code 0, or 2 for a mistake in options, data or the model's files.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import traceback
from pathlib import Path

from prepare import cache
from prepare.errors import UserError, is_panic, printable
from prepare.formats import CHAT_FORMATS
from prepare.model_files import ModelFiles
from prepare.pipeline import Encoder, first_format, prepare_file
from prepare.readers import Reader
from prepare.rules import Rules
from prepare.show import samples
from prepare.template import ChatTemplate
from prepare.workers import MOST_WORKERS, available_cores

PARALLEL_BYTES = 4 << 20  # a smaller file is done before workers are


def _arguments(argv):
    parser = argparse.ArgumentParser(
        prog="prepare", description="Tokenises data files into the token caches that moetune reads."
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="JSON lines, a JSON array, either compressed, or Parquet: recognised"
    )
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
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes for a file (default: a core each, eight at most)"
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


def _sources(path, rules, name, model):
    """Everything that shapes the tokens."""
    sources = {
        "data": cache.sha256_file(path),
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


class _Encoders:
    """The encoder for a file of some format: with the model's files, which are read when a file first needs them."""

    def __init__(self, options):
        self.folder, self.rules = options.model, _rules(options)
        self.with_model = self.without_model = None

    def of(self, name, path):
        tokenised = name == "input_ids/labels"
        if self.folder is None and not tokenised:
            raise UserError(
                f"{path}: format {name} needs a tokenizer\n  fix: add --model DIR, a Hugging Face folder with"
                " tokenizer.json"
            )
        if tokenised and (self.folder is None or not (Path(self.folder) / "tokenizer.json").exists()):
            self.without_model = self.without_model or Encoder(None, self.rules)
            return self.without_model
        self.with_model = self.with_model or Encoder(ModelFiles(self.folder), self.rules)
        if name in CHAT_FORMATS and self.with_model.model.template is None:
            raise UserError(
                f"{self.folder}: the model has no chat template, and {path} holds conversations\n"
                "  fix: put the template into chat_template.jinja there, or write the data as prompt/completion or text"
            )
        return self.with_model


def _workers(options, size):
    if options.workers:
        return options.workers
    return min(available_cores(), MOST_WORKERS) if size >= PARALLEL_BYTES else 1


def _write(path, reader, encoder, name, options, sources, key):
    """Makes the cache of a file and returns its metadata."""
    try:
        with cache.Writer(path) as writer:
            result = prepare_file(reader, encoder, name, _workers(options, reader.size), writer.append)
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
            writer.finish(metadata)
    except OSError as e:
        raise UserError(
            f"{path}: cannot be written: {e.strerror}\n  fix: name a folder that can be written with data.cache"
            " (--cache here), or free some space"
        ) from None
    return metadata


def _prepare(path, encoders, options):
    """The summary of a file's cache, made where there is none yet, and the model that its tokens belong to or None."""
    reader = Reader(path)
    name = first_format(reader)
    _say(f"{path}: format {name}")
    encoder = encoders.of(name, path)
    sources = _sources(path, encoder.rules, name, encoder.model)
    key = cache.key_of(sources)
    cached = cache.cache_path(options.cache, key)
    metadata = cache.read_metadata(cached, key)
    reused = metadata is not None
    if reused:
        _say(f"the cache {cached} is up to date")
    else:
        metadata = _write(cached, reader, encoder, name, options, sources, key)
    for note in json.loads(metadata["notes"]):
        _say(f"note: {note}")
    counts = {k: int(metadata[k]) for k in ("documents", "tokens", "target_tokens")}
    return {"cache": cached, **counts, "format": name, "reused": reused}, encoder.model


def run(options):
    for option, value in (("--show", options.show), ("--workers", options.workers)):
        if value < 0:
            raise UserError(f"{option} {value}: a number, 0 or more")
    # Blocks are what runs in parallel; threads of the tokenizers package would not survive the fork of workers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoders, summaries, to_show = _Encoders(options), [], options.show
    for path in options.files:
        summary, model = _prepare(path, encoders, options)
        summaries.append(summary)
        shown = min(to_show, summary["documents"])
        to_show -= shown
        for text in samples(summary["cache"], model and model.tokenizer, shown, sys.stdout.isatty()) if shown else ():
            print(text)
    for summary in summaries:
        # A path may hold bytes that are no text; its last name is plain.
        summary["cache"] = os.fsencode(summary["cache"]).decode("utf-8", "replace")
    print(json.dumps(summaries[0] if len(summaries) == 1 else {"files": summaries}))


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
