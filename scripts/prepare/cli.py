"""The command line of preparation.

    python scripts/prepare FILE.jsonl --model DIR --cache DIR [--special-tokens as_text|reject|allow]
                           [--train-on assistant|all] [--show N]

Standard output ends with one JSON line: {"cache", "documents", "tokens", "target_tokens", "format", "reused"}. What is
said on the way goes to standard error. Exit code 0, or 2 for a mistake in options, data or the model's files.
"""

import argparse
import hashlib
import importlib.metadata
import json
import sys

from prepare import cache
from prepare.errors import UserError
from prepare.model_files import ModelFiles
from prepare.pipeline import first_format, prepare_file
from prepare.show import samples
from prepare.template import ChatTemplate

CHAT_FORMATS = ("messages", "sharegpt")


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
        default="as_text",
        help="what text of special tokens inside content becomes (default: as_text)",
    )
    parser.add_argument(
        "--train-on",
        choices=("assistant", "all"),
        default="assistant",
        help="targets in conversations, prompt/completion and alpaca (default: assistant)",
    )
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the first N documents with their trained tokens marked"
    )
    return parser.parse_args(argv)


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _sources(options, name, model):
    """Everything that shapes the tokens."""
    sources = {
        "data": cache.sha256_file(options.file),
        "format": name,
        "special_tokens": options.special_tokens,
        "train_on": options.train_on,
        "code": cache.code_digest(),
    }
    for package in ("tokenizers", "jinja2"):
        sources[package] = importlib.metadata.version(package)
    if model:
        sources |= {
            "tokenizer": _digest(model.tokenizer_text),
            "template": _digest((model.template or "").encode()),
            "bos": model.bos or "",
            "eos": model.eos or "",
            "model_vocab": str(model.model_vocab),
        }
        if model.template and name in (*CHAT_FORMATS, "alpaca"):
            template = ChatTemplate(model.template, model.bos, model.eos)
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
    sources = _sources(options, name, model)
    key = cache.key_of(sources)
    path = cache.cache_path(options.cache, key)
    metadata = cache.read_metadata(path, key)
    reused = metadata is not None
    if reused:
        _say(f"the cache {path} is up to date")
    else:
        result = prepare_file(options.file, model, name, options.special_tokens, options.train_on)
        for note in result.notes:
            _say(f"note: {note}")
        metadata = {
            "moetune_tokens": cache.FORMAT_VERSION,
            "documents": str(result.documents),
            "tokens": str(result.tokens),
            "target_tokens": str(result.target_tokens),
            "format": name,
            "vocab_size": str(result.vocab_size),
            "key": key,
            "sources": json.dumps(sources, sort_keys=True, ensure_ascii=False),
        }
        try:
            cache.write(path, result.chunks, metadata)
        except OSError as e:
            raise UserError(
                f"{path}: cannot be written: {e.strerror}\n  fix: choose another --cache folder or free some space"
            ) from None
    for text in samples(path, model.tokenizer if model else None, options.show, sys.stdout.isatty()):
        print(text)
    counts = {k: int(metadata[k]) for k in ("documents", "tokens", "target_tokens")}
    print(json.dumps({"cache": str(path), **counts, "format": name, "reused": reused}))


def main(argv=None):
    try:
        run(_arguments(argv))
        return 0
    except UserError as e:
        _say(f"error: {e}")
        return 2
    except KeyboardInterrupt:
        _say("stopped; nothing was written")
        return 130
