"""A conversation in the words of the model's own template: names of fields, form of arguments, variables.

    fitted = fit(template, sample, chat_kwargs)      # Fitted: messages, render, thoughts that the template does not know
    text = fitted.render(fitted.messages)

What the template does not read is an error here: a variable, tools, calls, a name.
"""

from dataclasses import dataclass, field
from functools import partial

from prepare.errors import printable
from prepare.keys import quoted
from prepare.messages import THOUGHTS
from prepare.sample import BadLine
from prepare.template import TemplateRefused
from prepare.tools import arguments_as

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
_THOUGHTS = frozenset(THOUGHTS)
_RESULT_ROLES = ("tool", "observation", "function", "ipython")


@dataclass
class Fitted:
    messages: list
    render: object  # render(messages, add_generation_prompt=False)
    unknown_thoughts: dict = field(default_factory=dict)  # message -> thoughts for which the template has no place


def variable_problem(template, name):
    """What is wrong with a variable for the template, or None."""
    if name in RESERVED:
        return f"{quoted(name)} is moetune's to set"
    return None if template.reads(name) else f"the chat template does not read {quoted(name)}"


def _probe(template, arguments):
    """The template's text of a call with these arguments, or None where it refuses them."""
    call = {"type": "function", "id": "call00000", "function": {"name": "f", "arguments": arguments}}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "f", "description": "f", "parameters": {}}}]
    try:
        return template.render(talk, tools=tools)
    except TemplateRefused:
        return None


def _argument_forms(template):
    """The forms of arguments that the template writes as JSON or takes apart: any of "text" and "object"."""
    if not hasattr(template, "argument_forms"):
        text, parsed = _probe(template, '{"probe": true}'), _probe(template, {"probe": True})
        forms = []
        if text is not None and '{"probe": true}' in text:
            forms.append("text")
        if parsed is not None and "{'probe'" not in parsed:
            forms.append("object")
        template.argument_forms = forms
    return template.argument_forms


def _fit_calls(template, calls):
    if not template.names("tool_calls"):
        raise BadLine(
            "the chat template knows no tool_calls",
            "write the calls into content as the model is to write them, or give such lines as input_ids and labels",
        )
    forms = _argument_forms(template)
    out = []
    for call in calls:
        given = "text" if isinstance(call["function"]["arguments"], str) else "object"
        # An empty object stands for arguments that were left out.
        form = given if given in forms or not forms else forms[0]
        out += arguments_as(form, [call])
    return out


def _fit_thoughts(template, message):
    """The message with its thoughts under the name that the template looks for, and those it has no name for."""
    if _THOUGHTS.isdisjoint(message):
        return message, None
    given = next(k for k in THOUGHTS if k in message)
    if template.names(given):
        return message, None
    known = next((k for k in THOUGHTS if template.names(k)), None)
    rest = {k: v for k, v in message.items() if k != given}
    return (rest, message[given]) if known is None else ({**rest, known: message[given]}, None)


def _fit_role(template, role):
    if role == "tool" and not template.names("tool"):
        return next((r for r in _RESULT_ROLES if template.names(r)), "tool")
    return role


def _check_name(render, messages, number):
    """The name of a speaker must reach the text; that of a tool's result only repeats its call."""
    message = messages[number]
    if "name" not in message or message["role"] in _RESULT_ROLES:
        return
    without = [*messages[:number], {k: v for k, v in message.items() if k != "name"}, *messages[number + 1 :]]
    if render(messages) == render(without):
        raise BadLine(
            'the chat template does not write the "name" of a message',
            "take it out, write it into content, or name it in data.ignore_keys: [name]",
            f"message {number + 1}, name {printable(message['name'], 40)}",
        )


def _with_null_content(render, messages):
    """Content that is null stays so, as in transformers, unless the template refuses it or writes the word None."""
    if all(m["content"] is not None for m in messages):
        return messages
    empty = [{**m, "content": ""} if m["content"] is None else m for m in messages]
    try:
        with_null = render(messages)
    except TemplateRefused:
        return empty
    try:
        return empty if with_null.count("None") > render(empty).count("None") else messages
    except TemplateRefused:
        return messages


def fit(template, sample, chat_kwargs):
    for name in sample.variables:
        problem = variable_problem(template, name)
        if problem:
            raise BadLine(problem, "take it out of chat_template_kwargs", f"chat_template_kwargs {quoted(name)}")
    for name in sample.unused:
        if template.reads(name) and name not in RESERVED:
            raise BadLine(
                f"the key {quoted(name)} stands beside the conversation, and the chat template reads it",
                f'write "chat_template_kwargs": {{{quoted(name)}: ...}}, or name it in data.ignore_keys: [{name}]',
            )
    if sample.tools and not template.reads("tools"):
        raise BadLine(
            "the chat template knows no tools",
            "write them into the system message, or name the key in data.ignore_keys: [tools]",
        )
    out = Fitted([], partial(template.render, tools=sample.tools, variables={**chat_kwargs, **sample.variables}))
    for number, message in enumerate(sample.messages):
        message, thoughts = _fit_thoughts(template, message)
        if thoughts:
            out.unknown_thoughts[number] = thoughts
        message = {**message, "role": _fit_role(template, message["role"])}
        if "tool_calls" in message:
            message["tool_calls"] = _fit_calls(template, message["tool_calls"])
        out.messages.append(message)
    out.messages = _with_null_content(out.render, out.messages)
    for number in range(len(out.messages)):
        _check_name(out.render, out.messages, number)
    return out
