"""The model's own chat template, rendered as transformers renders it, but as the untrusted program that it is.

    template = ChatTemplate(source, bos="<s>", eos="</s>")
    with limits():
        text = template.render(messages)       # TemplateRefused: the template calls raise_exception, or breaks a limit
    template.reads("tools")                    # whether this variable makes a difference to it
    template.names("reasoning_content")        # whether it looks for a part of a message that has this name

The sandbox keeps Python's objects away; limits on time, memory and integers keep a loop or a huge repetition from
hanging the machine. strftime_now gives the day of today at midnight, so that one run never renders two dates.
"""

import contextlib
import datetime
import json
import os
import resource
import signal
import threading

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prepare.errors import UserError

RENDER_SECONDS = 10
RENDER_BYTES = 2 << 30  # address space that rendering may add to the process
OUTPUT_BYTES = 8 << 20  # of UTF-8: a text takes a hundred times its size and more while tokens are made of it
INTEGER_BITS = 1024


class TemplateRefused(Exception):
    """The template does not take this conversation; the text says why, in the template's words where it has some."""


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's part for transformers; spans say that here, so
    only its body counts."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context, operator, left, right):
        bits = [v.bit_length() for v in (left, right) if isinstance(v, int)]
        if (
            len(bits) == 2
            and (max(bits) if operator == "*" else bits[0] * abs(min(right, INTEGER_BITS))) > INTEGER_BITS
        ):
            raise OverflowError("an integer grows too large")
        return super().call_binop(context, operator, left, right)


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _utf8_bytes(text):
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # the template's source may spell one with an escape
        raise TemplateRefused("it writes half of a surrogate pair") from None


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own filter escapes HTML characters.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@contextlib.contextmanager
def _limited_memory():
    """A template's repetition of a string then ends in MemoryError instead of the machine's last byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as f:
        limit = int(f.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + RENDER_BYTES
    for bound in (soft, hard):
        if bound != resource.RLIM_INFINITY:
            limit = min(limit, bound)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class TooSlow(BaseException):
    """Not an Exception, so that nothing on the way takes it for an error of an expression."""


def _too_slow(signum, frame):
    raise TooSlow


_alarm_is_heard = False


@contextlib.contextmanager
def _heard_alarm():
    """The alarm of _limited_time raises TooSlow. Signals reach the main thread only; elsewhere the other limits hold
    alone."""
    global _alarm_is_heard
    if _alarm_is_heard or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _too_slow)
    _alarm_is_heard = True
    try:
        yield
    finally:
        _alarm_is_heard = False
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def limits():
    """What every render runs under. Setting them up takes longer than to render a short conversation: it is done once for
    many."""
    with _limited_memory(), _heard_alarm():
        yield


class _LimitedTime:
    """Raises TooSlow after RENDER_SECONDS, in the main thread and under limits. A class, since one enters and leaves it
    in a third of the time that a generator takes."""

    def __enter__(self):
        if _alarm_is_heard:
            signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)

    def __exit__(self, *_):
        if _alarm_is_heard:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def limited_time():
    """The same for other programs of a model, where they are one or few: raises TooSlow."""
    with _heard_alarm(), _LimitedTime():
        yield


class ChatTemplate:
    def __init__(self, source, bos, eos):
        self.source = source
        self.uses_date = "strftime_now" in source
        self.today = datetime.date.today()
        midnight = datetime.datetime.combine(self.today, datetime.time())
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = midnight.strftime
        # As transformers: a token that the model lacks is undefined in the template.
        self.tokens = {k: v for k, v in (("bos_token", bos), ("eos_token", eos)) if v is not None}
        fix = "\n  fix: compare chat_template.jinja or tokenizer_config.json with the model's original"
        try:
            with limits(), _LimitedTime():  # Jinja computes constant expressions while it compiles
                self.template = environment.from_string(source)
                # A copy for each render is made of them, which of Jinja's own chain of dictionaries takes long.
                self.template.globals = dict(self.template.globals)
                tree = environment.parse(source)
                self._variables = jinja2.meta.find_undeclared_variables(tree)
                self._names = {n.attr for n in tree.find_all(nodes.Getattr)}
                self._names |= {n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)}
        except jinja2.TemplateSyntaxError as e:
            raise UserError(f"the chat template does not compile: {e.message}, at its line {e.lineno}{fix}") from None
        except (RecursionError, MemoryError, SyntaxError) as e:
            raise UserError(
                f"the chat template does not compile: {type(e).__name__}, it is nested too deep or too large{fix}"
            ) from None
        except TooSlow:
            raise UserError(f"the chat template does not compile within {RENDER_SECONDS} s{fix}") from None

    def reads(self, variable):
        return variable in self._variables

    def names(self, part):
        return part in self._names

    def render(self, messages, tools=None, variables=None, add_generation_prompt=False):
        """The text of one conversation. Call it under limits."""
        try:
            with _LimitedTime():
                text = self.template.render(
                    **self.tokens
                    | (variables or {})
                    | {
                        "messages": messages,
                        "tools": tools,
                        "documents": None,
                        "add_generation_prompt": add_generation_prompt,
                    }
                )
        except TooSlow:
            raise TemplateRefused(f"it ran for more than {RENDER_SECONDS} s") from None
        except MemoryError:
            raise TemplateRefused(f"it asked for more than {RENDER_BYTES >> 30} GiB of memory") from None
        except jinja2.TemplateError as e:
            raise TemplateRefused(f'it says "{e.message}"') from None
        except RecursionError:
            raise TemplateRefused("it recurses without end") from None
        except Exception as e:  # a template is a program: any error of its expressions may come out
            raise TemplateRefused(f"{type(e).__name__}: {str(e)[:200]}") from None
        if len(text) > OUTPUT_BYTES or _utf8_bytes(text) > OUTPUT_BYTES:
            raise TemplateRefused(f"it writes more than {OUTPUT_BYTES >> 20} MiB for one line")
        return text
