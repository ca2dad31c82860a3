"""What every page must be: read by parsers of HTML and of XML alike, and loading nothing.

tree = sound_tree(test, text)   # the page as a tree
words_of(tree)                  # what a reader sees
"""

import re
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

LOADING = {"src", "href", "data", "poster", "srcset", "action"}


class _Loads(HTMLParser):
    """What a page would have a browser load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, name, value) for name, value in attributes if name.split(":")[-1] in LOADING]
        self.found += [(tag, "", "")] if tag in ("link", "iframe", "img", "object", "base") else []


def sound_tree(test, text):
    loads = _Loads()
    loads.feed(text)
    test.assertEqual(loads.found, [])
    for remote in ("@import", "url(", "//cdn"):
        test.assertNotIn(remote, text)
    return xml.fromstring(text.split("-->\n", 1)[1])


def words_of(tree):
    return re.sub(r"\s+", " ", " ".join(tree.find("body").itertext()))
