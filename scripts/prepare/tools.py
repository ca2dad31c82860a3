"""What an assistant may call, and its calls, in the one form that chat templates know.

parse_tools('[{"name": "add"}]')        # [{"type": "function", "function": {"name": "add"}}]
parse_calls([{"function": {"name": "add", "arguments": "{}"}}])      # with "type" and checked; arguments as given
parse_call_text('{"name": "add", "arguments": {}}')                  # of sharegpt's speaker function_call

OpenAI's older "function_call" and "functions" are the same things without their wrapping.
"""

import json

from prepare import jsonl
from prepare.checks import check_text
from prepare.errors import printable
from prepare.keys import is_absent, quoted
from prepare.sample import BadLine

CALL_FIX = 'a call is {"type": "function", "function": {"name": ..., "arguments": ...}}'


def parse_json(text, kind, fix):
    """The value of JSON text inside a line, as strict as the line itself."""
    try:
        value = jsonl.value_of(text)
    except jsonl.DuplicateKey as e:
        raise BadLine(kind, fix, f"the key {quoted(str(e))} stands twice in one object") from None
    except (ValueError, RecursionError) as e:
        raise BadLine(kind, fix, printable(str(e), 120)) from None
    check_text(value, kind)
    return value


def _wrapped(item):
    return item if "function" in item or "type" in item else {"type": "function", "function": item}


def parse_tools(value, key="tools"):
    """Definitions: a list, or JSON text of one, each as it is or as its "function" alone."""
    fix = f'"{key}" is a list of definitions, or JSON text of one'
    if isinstance(value, str):
        value = parse_json(value, f'"{key}" is text that is not JSON', fix)
    if not isinstance(value, list) or not all(isinstance(t, dict) and t for t in value):
        raise BadLine(f'"{key}" is not a list of definitions', fix, f"a {type(value).__name__}")
    check_text(value, f'"{key}"')
    return [_wrapped(t) for t in value]


def parse_calls(value, key="tool_calls"):
    """Calls: a list (or JSON text of one) of what CALL_FIX says, "type" and the wrapping left out or not."""
    if isinstance(value, str):
        value = parse_json(value, f'"{key}" is text that is not JSON', CALL_FIX)
    if not isinstance(value, list) or not all(isinstance(c, dict) for c in value):
        raise BadLine(f'"{key}" is not a list of calls', CALL_FIX, f"a {type(value).__name__}")
    return [_call(c, key) for c in value]


def _call(call, key):
    call = call if "function" in call else {"function": call}
    function = call["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise BadLine(f'a call of "{key}" has no name', CALL_FIX)
    kind = call.get("type") or "function"
    if kind != "function":
        raise BadLine(f'a call of "{key}" is not of type function', CALL_FIX, printable(str(kind), 40))
    for values, known in ((call, ("id", "type", "index", "function")), (function, ("name", "arguments"))):
        for name, value in values.items():
            # The bare form keeps an id beside the name.
            if name not in known and not (values is function and name in ("id", "type")) and not is_absent(value):
                raise BadLine(f"the key {quoted(name)} of a call is not honoured", f"remove it; {CALL_FIX}")
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, (str, dict)):
        raise BadLine(f'the arguments of a call of "{key}" are no object', CALL_FIX, f"a {type(arguments).__name__}")
    check_text([function["name"], arguments], f'a call of "{key}"')
    out = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        out["id"] = check_text(call["id"], "the id of a call")
    return out


def parse_call_text(text):
    """The calls that sharegpt's speaker function_call writes: one object, or a list."""
    kind = "the value of function_call is not JSON"
    value = parse_json(text, kind, 'write {"name": ..., "arguments": {...}}, or a list of such')
    return parse_calls(value if isinstance(value, list) else [value], "function_call")


def arguments_as(form, calls):
    """Copies of calls with their arguments as "text" or as an "object"; arguments that are no JSON object raise."""
    out = []
    for call in calls:
        arguments = call["function"]["arguments"]
        if form == "text" and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif form == "object" and isinstance(arguments, str):
            kind = "the arguments of a call are not JSON"
            arguments = parse_json(arguments, kind, "this chat template writes them itself, from an object")
            if not isinstance(arguments, dict):
                raise BadLine(kind, "this chat template writes them itself, from an object", "no object")
        out.append({**call, "function": {**call["function"], "arguments": arguments}})
    return out
