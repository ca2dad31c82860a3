"""Many strings as one regular expression, which takes the longest that stands at a place.

one_of(["<a>", "<ab>"]).sub(...)       # as the tokenizers package looks for added tokens: leftmost, longest
"""

import re


def one_of(strings):
    """A tree of common beginnings: an alternation of a thousand names would be tried name by name at each "<"."""
    tree, strings = {}, list(strings)
    for text in strings:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}  # a string ends here
    try:
        return re.compile(_pattern(tree) if tree else "(?!)")
    except RecursionError:  # hundreds of names, each of which goes on where another ends
        return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))))


def _pattern(tree):
    # A chain without forks is walked in a loop, so that a long string needs no deep recursion.
    chain = []
    while len(tree) == 1 and "" not in tree:
        ((character, tree),) = tree.items()
        chain.append(re.escape(character))
    # What goes on stands first, and so wins over what ends.
    branches = [re.escape(c) + _pattern(rest) for c, rest in tree.items() if c]
    forks = f"(?:{'|'.join(branches)}){'?' if '' in tree else ''}" if branches else ""
    return "".join(chain) + forks
