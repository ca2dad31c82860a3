"""Conversations: messages checked and brought into one form, whatever the file calls their parts.

messages, weights = read_messages(turns, rules)           # of {"messages": turns}
turns = sharegpt_turns(value)                             # {"conversations": [{"from", "value"}]} as messages
turns = with_system(turns, value, "messages")             # a system prompt that stands beside them put first

A message comes out with role, content (None only beside tool_calls) and, where it has them, name, one of THOUGHTS,
tool_calls (tools.py) and tool_call_id. Its weight is that of its tokens in the loss, 0 where it is no target.
"""

from prepare.checks import check_string, check_text, check_weight
from prepare.errors import printable
from prepare.keys import check_message, is_absent, quoted
from prepare.sample import BadLine
from prepare.tools import parse_call_text, parse_calls

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # what templates of different families call the same thing
_PLAIN = {"role", "content"}  # the keys of most messages, beside which there is nothing to look for
RESULTS = {"tool": "tool", "function": "tool", "observation": "tool"}  # roles of what a tool gave back
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    **RESULTS,
}


def _content(message, may_be_null):
    content = message.get("content")
    if content is None and may_be_null:
        return None
    if isinstance(content, list):
        # The parts of a text-only message are joined; anything else has no meaning to a language model.
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise BadLine("content that is not text", "moetune trains on text: remove images and other parts")
        for part in content:
            for key, value in part.items():
                if key not in ("type", "text") and not is_absent(value):
                    raise BadLine(f"the key {quoted(key)} of a part of content is not honoured", "remove it")
        content = "".join(p["text"] for p in content)
    return check_string(content, "content")


def _weight(message, role, is_target):
    """How much the tokens of a message count: what it says itself, otherwise by its role and place."""
    usual = float(is_target)
    stated = {}
    train = message.get("train")
    if train is not None:
        if not isinstance(train, bool):
            raise BadLine('"train" is not true or false', 'give "train": true or "train": false', repr(train)[:40])
        stated["train"] = usual = float(train)
    for key in ("weight", "loss"):
        value = message.get(key)
        if value is None:
            continue
        stated[key] = float(value) if key == "loss" and isinstance(value, bool) else check_weight(value, key)
        if stated[key] > 0 and not usual and train is None:
            raise BadLine(
                f'"{key}" above 0 in a message that is no target',
                'give "train": true beside it if it is to be learnt, or take it out',
                f"role {printable(role, 40)}",
            )
    if not stated:
        return usual
    numbers = {v for k, v in stated.items() if k != "train"} or {usual}
    if len({v > 0 for v in stated.values()}) > 1 or len(numbers) > 1:
        raise BadLine(
            '"train", "weight" and "loss" of a message disagree', "keep one of them", f"{', '.join(sorted(stated))}"
        )
    return numbers.pop()


def _calls(message, role):
    """The calls of a message, or None: "tool_calls", or OpenAI's older "function_call"."""
    newer, older = (not is_absent(message.get(k)) for k in ("tool_calls", "function_call"))
    if not newer and not older:
        return None
    if newer and older:
        raise BadLine('"tool_calls" and "function_call" in one message', "keep tool_calls")
    if role != "assistant":
        raise BadLine("calls in a message that is not the assistant's", "calls are the assistant's to make")
    if newer:
        return parse_calls(message["tool_calls"])
    return parse_calls([message["function_call"]], "function_call")


def _thoughts(message, role):
    """(name, text) of thoughts that stand in a field of their own, or None."""
    given = [(k, check_string(message[k], k)) for k in THOUGHTS if not is_absent(message.get(k))]
    if not given:
        return None
    if len({text for _, text in given}) > 1:
        raise BadLine(
            "one message with thoughts under several names", "keep one of them", ", ".join(k for k, _ in given)
        )
    if role != "assistant":
        raise BadLine("thoughts in a message that is not the assistant's", "remove them", f"role {printable(role, 40)}")
    return given[0]


def _message(message, role):
    calls = _calls(message, role)
    out = {"role": RESULTS.get(role, role), "content": _content(message, calls is not None)}
    if thoughts := _thoughts(message, role):
        out[thoughts[0]] = thoughts[1]
    if calls:
        out["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if not is_absent(message.get(key)):
            out[key] = check_string(message[key], key)
    return out


def read_messages(turns, rules, first_target=0):
    """Checked messages, and the weight of each; no answer before message first_target is one to learn."""
    if not isinstance(turns, list) or not turns or not all(isinstance(m, dict) for m in turns):
        raise BadLine('"messages" is not a list of messages', 'give a list of {"role": ..., "content": ...}')
    messages, weights = [], []
    for number, m in enumerate(turns):
        if rules.ignore_keys:
            m = {k: v for k, v in m.items() if k not in rules.ignore_keys or k in ("role", "content")}
        has_calls = not is_absent(m.get("tool_calls")) or not is_absent(m.get("function_call"))
        if "role" not in m or ("content" not in m and not has_calls):
            raise BadLine(
                'a message without "role" or "content"',
                'give both; sharegpt lines have "conversations", "from", "value"',
                "keys " + ", ".join(list(m)[:6]),
            )
        if m.keys() == _PLAIN and isinstance(m["content"], str):
            role, content = check_string(m["role"], "role", may_be_empty=False), check_string(m["content"], "content")
            messages.append({"role": RESULTS.get(role, role), "content": content})
            weights.append(float(rules.train_all or (role == "assistant" and number >= first_target)))
            continue
        check_message(m)
        role = check_string(m["role"], "role", may_be_empty=False)
        messages.append(_message(m, role))
        weights.append(_weight(m, role, rules.train_all or (role == "assistant" and number >= first_target)))
    return messages, weights


def sharegpt_turns(value, ignore_keys=()):
    """The turns of {"conversations": [...]} as messages, their other keys with them."""
    turns = value["conversations"]
    if not isinstance(turns, list) or not all(isinstance(m, dict) and "from" in m and "value" in m for m in turns):
        raise BadLine(
            '"conversations" is not a list of {"from", "value"}', 'give that, or "messages" with "role" and "content"'
        )
    messages = []
    for m in turns:
        speaker = m["from"]
        role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise BadLine(
                "a speaker that is not known", '"from" may be ' + ", ".join(SHAREGPT_ROLES), repr(speaker)[:40]
            )
        rest = {k: v for k, v in m.items() if k not in ("from", "value")}
        for key in ("role", "content"):
            if not is_absent(rest.get(key)) and key not in ignore_keys:
                raise BadLine(f'"from" and "value" beside "{key}" in one turn', "keep one form of message")
            rest.pop(key, None)
        content = check_string(m["value"], "value")
        if speaker == "function_call":
            if not is_absent(rest.get("tool_calls")):
                raise BadLine('"tool_calls" in a turn of function_call', "keep one of the two")
            messages.append({"role": role, "content": None, "tool_calls": parse_call_text(content), **_no_calls(rest)})
        else:
            messages.append({"role": role, "content": content, **rest})
    return messages


def _no_calls(rest):
    return {k: v for k, v in rest.items() if k != "tool_calls"}


def with_system(turns, value, key="system"):
    """Messages behind the system prompt that stands beside them in the line, if there is one."""
    system = value.get(key)
    if is_absent(system):
        return turns
    check_string(system, key)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        if turns[0].get("content") != system:
            raise BadLine(f'"{key}" beside a system message that differs', "keep one of the two")
        return turns
    return [{"role": "system", "content": system}, *turns] if isinstance(turns, list) else turns


def template_variables(value):
    """The line's "chat_template_kwargs"."""
    variables = value.get("chat_template_kwargs")
    if is_absent(variables):
        return {}
    if not isinstance(variables, dict):
        raise BadLine('"chat_template_kwargs" is not an object', 'give {"thinking": true}, say')
    return check_text(variables, '"chat_template_kwargs"')
