"""What preparation needs of a Hugging Face model folder: tokenizer.json as it is, bos, eos and the chat template.

model = ModelFiles(folder)
model.tokenizer      # tokenizers.Tokenizer, from tokenizer.json itself: "tokenizer_class" is not trusted (transformers 5
                     # rebuilds DeepSeek's byte-level tokenizer as another one because of it)
model.template       # source of the chat template, or None
model.tool_template  # of the one for lines with tools, where it is another
model.bos, model.eos # strings, or None
model.asks_for_bos   # "add_bos_token": true
"""

import json
import os
from pathlib import Path

from tokenizers import Tokenizer

from prepare.errors import UserError, is_panic, printable

MAX_CONFIG_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20


# Tokenizers in other files, and how tokenizer.json is made of them.
OTHER_TOKENIZERS = {
    "tiktoken.model": "write tokenizer.json of it once: docs/data.md, under Tokenizer files, has the lines of Python",
    "tokenizer.model": "write tokenizer.json of it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
}


def _read(path, limit):
    try:
        if path.stat().st_size > limit:
            raise UserError(
                f"{path}: larger than {limit >> 20} MiB\n  fix: this is not the file that a model ships with"
            )
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8\n  fix: download it again") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read: {e.strerror}\n  fix: check its permissions") from None


def _is_no_file(path):
    """What stands in the place of a file. A link that leads nowhere is no file that was left out."""
    if path.is_symlink() and not path.exists():
        return f"is a link to {printable(os.readlink(path), 200)}, which is not there\n  fix: download it again"
    return "is no file\n  fix: download it again"


def _read_json(path):
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise UserError(f"{path}: {_is_no_file(path)}")
    try:
        value = json.loads(_read(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON: {e}\n  fix: download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object\n  fix: download it again")
    return value


def _check_unicode(text, path, key):
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f'{path}: "{key}" holds half of a surrogate pair\n  fix: download it again') from None
    return text


def _token(config, key, path):
    """A special token, which is a string or an object with "content"; None where there is none."""
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(text, str):
        raise UserError(
            f'{path}: "{key}" is {json.dumps(value)[:80]}\n  fix: it is a string, an object with "content", or null'
        )
    return _check_unicode(text, path, key) if text else None


class ModelFiles:
    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        if os.path.lexists(path) and not path.is_file():
            raise UserError(f"{path}: {_is_no_file(path)}")
        if not path.is_file():
            other = next((n for n in OTHER_TOKENIZERS if (self.folder / n).is_file()), None)
            raise UserError(
                f"{path}: there is no such file"
                + (
                    f", only {other}\n  fix: {OTHER_TOKENIZERS[other]}"
                    if other
                    else "\n  fix: model.path is a Hugging Face folder with tokenizer.json"
                )
            )
        try:
            self.tokenizer_text = path.read_bytes()
            self.tokenizer = Tokenizer.from_str(self.tokenizer_text.decode("utf-8"))
        except OSError as e:
            raise UserError(f"{path}: cannot be read: {e.strerror}\n  fix: check its permissions") from None
        except BaseException as e:  # the package raises bare Exception, or panics
            if not is_panic(e) and not isinstance(e, Exception):
                raise
            raise UserError(
                f"{path}: tokenizers cannot read it: {printable(str(e), 200)}\n  fix: download it again"
            ) from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        where = self.folder / "tokenizer_config.json"
        self.config = _read_json(where)
        special_file = self.folder / "special_tokens_map.json"
        special = _read_json(special_file)
        self.bos, self.eos = (
            _token(self.config, key, where) or _token(special, key, special_file) for key in ("bos_token", "eos_token")
        )
        asks = self.config.get("add_bos_token")
        if asks is not None and not isinstance(asks, bool):
            raise UserError(f'{where}: "add_bos_token" is a {type(asks).__name__}\n  fix: it is true or false')
        self.asks_for_bos = asks is True
        self.template, self.tool_template = self._templates(where)
        # The model's embedding has vocab_size rows; a tokenizer may have fewer ids, never more.
        model_vocab = _read_json(self.folder / "config.json").get("vocab_size")
        if model_vocab is not None and type(model_vocab) is not int:
            raise UserError(f'{self.folder}/config.json: "vocab_size" is no whole number\n  fix: download it again')
        self.model_vocab = model_vocab

    def _templates(self, where):
        """The chat template and the one for lines with tools, which transformers takes where it is named tool_use."""
        file = self.folder / "chat_template.jinja"
        if os.path.lexists(file) and not file.is_file():
            raise UserError(f"{file}: {_is_no_file(file)}")
        if file.is_file():
            return _read(file, MAX_TEMPLATE_BYTES) or None, None
        template, tool_use = self.config.get("chat_template"), None
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            if "default" not in named:
                raise UserError(
                    f'{where}: none of its chat templates is named "default", only '
                    f"{', '.join(map(str, named))}\n  fix: put the one to use into chat_template.jinja beside it"
                )
            template, tool_use = named["default"], named.get("tool_use")
        for source in (template, tool_use):
            if source is not None and not isinstance(source, str):
                raise UserError(
                    f'{where}: "chat_template" is a {type(source).__name__}\n'
                    "  fix: it is a string, or a list with names"
                )
            if source is not None and len(_check_unicode(source, where, "chat_template").encode()) > MAX_TEMPLATE_BYTES:
                raise UserError(
                    f"{where}: the chat template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB\n"
                    "  fix: compare it with the model's original"
                )
        return template or None, tool_use or None
