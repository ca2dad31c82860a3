"""What preparation needs of a Hugging Face model folder: tokenizer.json as it is, bos, eos and the chat template.

model = ModelFiles(folder)
model.tokenizer      # tokenizers.Tokenizer, from tokenizer.json itself: "tokenizer_class" is not trusted
                     (transformers 5
                     # rebuilds DeepSeek's byte-level tokenizer as another one because of it)
model.template       # source of the chat template, or None
model.bos, model.eos # strings, or None
"""

import json
from pathlib import Path

from tokenizers import Tokenizer

from prepare.errors import UserError

MAX_CONFIG_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20


def _read(path, limit):
    if path.stat().st_size > limit:
        raise UserError(f"{path}: larger than {limit >> 20} MiB\n  fix: this is not the file that a model ships with")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8\n  fix: download it again") from None


def _read_json(path):
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"{path}: is no file\n  fix: download it again")
    try:
        value = json.loads(_read(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON: {e}\n  fix: download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not an object\n  fix: download it again")
    return value


def _token(path, values, key):
    """A special token, which is a string or an object with "content"; None where the file names none."""
    value = values.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(text, str):
        raise UserError(
            f'{path}: "{key}" is {json.dumps(value)[:80]}\n  fix: it is a string, an object with "content", or null'
        )
    return text or None


class ModelFiles:
    def __init__(self, folder):
        self.folder = Path(folder)
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such file\n  fix: --model is a Hugging Face folder with tokenizer.json"
            )
        self.tokenizer_text = path.read_bytes()
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:  # the package raises bare Exception
            raise UserError(f"{path}: tokenizers cannot read it: {e}\n  fix: download it again") from None
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.config = _read_json(self.folder / "tokenizer_config.json")
        self.bos, self.eos = self._token("bos_token"), self._token("eos_token")
        self.template = self._template()
        # The model's embedding has vocab_size rows; a tokenizer may have fewer ids, never more.
        model_vocab = _read_json(self.folder / "config.json").get("vocab_size")
        self.model_vocab = model_vocab if type(model_vocab) is int else None

    def _token(self, key):
        special = self.folder / "special_tokens_map.json"
        return _token(self.folder / "tokenizer_config.json", self.config, key) or _token(
            special, _read_json(special), key
        )

    def _template(self):
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return _read(file, MAX_TEMPLATE_BYTES)
        template = self.config.get("chat_template")
        where = self.folder / "tokenizer_config.json"
        if isinstance(template, list):
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            if "default" not in named:
                raise UserError(
                    f'{where}: none of its chat templates is named "default", only '
                    f"{', '.join(map(str, named))}\n  fix: put the one to use into chat_template.jinja beside it"
                )
            template = named["default"]
        if template is not None and not isinstance(template, str):
            raise UserError(
                f'{where}: "chat_template" is a {type(template).__name__}\n  fix: it is a string, or a list with names'
            )
        if template is not None and len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
            raise UserError(f"{where}: the chat template is larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return template or None
