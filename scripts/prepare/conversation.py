"""A conversation through the model's template: its text, what of it is trained, and what the template left out.

    rendered = render_sample(template, sample, rules, may_be_special)     # Rendered; BadLine for what would be lost

may_be_special tells of a string whether it could hold the text of a special token.

Thoughts. Many templates take the thoughts out of answers, which is right for history and wrong for what is to be
learnt. Where that hits a trained answer the line is refused, or with data.thoughts: keep its last turn is put together
as the model will write it: behind the generation prompt, whole, with the template's end of a turn.
"""

import json
from dataclasses import dataclass
from itertools import chain

from prepare.errors import printable
from prepare.faithful import changed_message
from prepare.fit import RESERVED, fit
from prepare.messages import THOUGHTS
from prepare.sample import BadLine, Text
from prepare.spans import NONCHARACTERS, Located, Part, Place, locate, spans_of
from prepare.template import TemplateRefused
from prepare.turns import call_region

_RESULT_ROLES = ("tool", "observation", "function", "ipython")
_REFUSED = ("the chat template refuses the conversation", "bring it into the form that the model's template asks for")


@dataclass
class Rendered:
    text: Text
    dropped: int = 0  # messages of which the template leaves nothing
    thoughts_left_out: int = 0  # messages whose thoughts the template takes out, though their answers are in the text


def _check_characters(sample):
    for i, message in enumerate(sample.messages):
        texts = [v for v in message.values() if isinstance(v, str)]
        if "tool_calls" in message:
            texts.append(json.dumps(message["tool_calls"], ensure_ascii=False))
        if any([not t.isascii() and NONCHARACTERS.search(t) for t in texts]):
            raise BadLine(
                "content holds U+FDD0..U+FDEF",
                "Unicode reserves these for internal use, and so does moetune: remove them",
                f"message {i + 1}, role {printable(message['role'], 40)}",
            )


def _strings_of(value):
    """All strings of tools and calls, which the template writes out of sight."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from _strings_of(v)
    elif isinstance(value, list):
        for v in value:
            yield from _strings_of(v)


def _check_tools(sample, may_be_special):
    """Special-token text in tools and calls could not be told from the template's own."""
    hidden = [sample.tools or [], sample.variables, [m["tool_calls"] for m in sample.messages if "tool_calls" in m]]
    names = [m[k] for m in sample.messages for k in ("name", "tool_call_id", "role") if k in m]
    for text in chain(_strings_of(hidden), dict.fromkeys(names)):
        if may_be_special(text):
            raise BadLine(
                "special-token text in tools, calls or names",
                "remove it, or let it be the token: data.special_tokens_in_content: allow",
                printable(text, 60),
            )


def render_sample(template, sample, rules, may_be_special):
    _check_characters(sample)
    _check_tools(sample, may_be_special)
    try:
        return _render(template, sample, rules, may_be_special)
    except TemplateRefused as e:
        raise BadLine(*_REFUSED, str(e)) from None


def _render(template, sample, rules, may_be_special):
    fitted = fit(template, sample, rules.chat_kwargs)
    messages, weights = fitted.messages, list(sample.weights)

    def matters(i):
        return weights[i] > 0 or any(may_be_special(messages[i].get(k) or "") for k in ("content", *THOUGHTS))

    located = locate(fitted.render, messages, matters)
    present = {p.message for p in located.places}
    dropped = [i for i, m in enumerate(messages) if i not in present and (m["content"] or "").strip()]
    _check_results(messages, dropped)
    cut = {p.message: p.text for p in located.missing if p.is_thought} | fitted.unknown_thoughts
    _check_missing(located, messages, weights)
    trained_cut = [i for i in sorted(cut) if weights[i] > 0]
    if trained_cut and rules.thoughts != "keep":
        raise BadLine(
            "the chat template takes thoughts out of trained answers",
            'data.thoughts: keep trains those of the last turn; or set "train": false, or take the thoughts out',
            f'message {trained_cut[0] + 1}: "{printable(cut[trained_cut[0]], 60)}"',
        )
    changed = changed_message(located, messages, weights)
    if changed is not None and changed not in trained_cut:
        raise BadLine(
            "the chat template changes a trained message: it takes characters out, or replaces them",
            'set "train": false in it, or give such lines as prompt/completion',
            f"message {changed + 1}, role {printable(messages[changed]['role'], 40)}",
        )
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    kept = trained_cut[-1:] if trained_cut and trained_cut[-1] == answers[-1] else []
    if kept:
        located = _with_last_turn(template, fitted, kept[0], matters)
    regions = {
        i: call_region(fitted.render, messages, i, located)
        for i, m in enumerate(messages)
        if "tool_calls" in m and (weights[i] > 0 or rules.train_all)
    }
    spans = spans_of(located, messages, weights, regions)
    text = Text(located.text, spans, sample.weight)
    return Rendered(text, len(dropped), len(cut) - len(kept))


def _check_results(messages, dropped):
    for i in dropped:
        if messages[i]["role"] in _RESULT_ROLES:
            raise BadLine(
                "the chat template leaves out a tool's result",
                "it knows no such role: write the result as a user message, or give such lines as input_ids and labels",
                f"message {i + 1}, role {messages[i]['role']}",
            )


def _check_missing(located, messages, weights):
    for part in located.missing:
        if part.field == "call":
            raise BadLine(
                "the chat template leaves out a call",
                "give such lines as input_ids and labels",
                f"message {part.message + 1}, {printable(part.text, 40)}",
            )
        if weights[part.message] > 0 and not part.is_thought:
            raise BadLine(
                "the chat template leaves out a trained message",
                'set "train": false in it, or give such lines as prompt/completion',
                f"message {part.message + 1}, role {printable(messages[part.message]['role'], 40)}",
            )


def _whole_answer(message, thoughts, prompt):
    """What the model writes of the turn behind this prompt, which may have opened the thoughts already."""
    content = message["content"] or ""
    opened = prompt.rstrip().endswith("<think>")
    white = prompt[len(prompt.rstrip()) :]
    if thoughts is not None:
        # With the white space that the template's own opening has.
        line = "" if opened and not white else "\n"
        close = line + "</think>" + line * 2
        return ("" if opened else "<think>\n") + thoughts.strip("\n") + close + content
    if opened and content.lstrip().startswith("<think>"):
        content = content.lstrip().removeprefix("<think>")
        return content.removeprefix(white) if white else content
    return content


def _with_last_turn(template, fitted, last, matters):
    """Located with the answer of message `last` whole, though the template would take its thoughts out."""
    messages, render = fitted.messages, fitted.render
    message = messages[last]
    where = f"message {last + 1}"
    if last != len(messages) - 1 or "tool_calls" in message:
        raise BadLine(
            "thoughts to keep are not in a last turn without calls",
            "end the conversation with that answer, or give such lines as input_ids and labels",
            where,
        )
    thoughts = fitted.unknown_thoughts.get(last)
    if thoughts is None:
        thoughts = next((message[k] for k in THOUGHTS if k in message), None)
    # A short answer in its place shows how the template begins and ends the turn.
    short = {k: v for k, v in message.items() if k not in THOUGHTS} | {"content": "x"}
    framed = locate(render, [*messages[:last], short], matters)
    places = [p for p in framed.places if p.message == last]
    if len(places) != 1:
        raise BadLine("the chat template does not write the last turn in one piece", "give it as input_ids", where)
    head, tail = framed.text[: places[0].start], framed.text[places[0].end :]
    before = [p for p in framed.places if p.message != last]
    if template.reads("add_generation_prompt") and last > 0:
        prompted = locate(lambda m, **_: render(m, add_generation_prompt=True), messages[:last], matters)
        head, before = prompted.text, prompted.places
        if head.rstrip().endswith("</think>"):
            raise BadLine(
                "thoughts to keep, and a chat template that opens the answer behind them",
                "tell the template to think" + _thinking_variable(template),
                where,
            )
    answer = _whole_answer(message, thoughts, head)
    place = Place(Part(last, "content", 0, answer), len(head), len(head) + len(answer))
    return Located(head + answer + tail, [*before, place])


def _thinking_variable(template):
    for name in ("thinking", "enable_thinking"):
        if template.reads(name) and name not in RESERVED:
            return f": data.chat_template_kwargs: {{{name}: true}}"
    return "; it has no variable for that: give such lines as prompt/completion"
