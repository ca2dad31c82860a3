"""The skeleton of a page, and what stands around its charts. Markup is such that parsers of HTML and of XML both read it.

html = page("runs/a", section("Loss", figure("Loss", svg, legend([("s0", "training")]))))

Nothing is loaded from elsewhere: style (page.css) and script (page.js) stand in the page, fonts are those of the reader.
Functions take and give markup; `escaped` makes it of text. Colours are classes: s0 to s7 tell things apart, in light and
dark alike.
"""

from datetime import datetime, timezone
from pathlib import Path

from draw.errors import printable

# What a page begins with, and nothing else does: a file that does may be replaced (trainer/main.cpp).
HEAD = "<!DOCTYPE html>\n<!-- drawn by moetune -->\n"

FOLDER = Path(__file__).parent


def escaped(text):
    text = printable(str(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def page(title, *parts, subtitle=""):
    """`title` is text, the rest markup."""
    css = (FOLDER / "page.css").read_text(encoding="utf-8")
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"""{HEAD}<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escaped(title)}</title>
<style>
{css}</style>
</head>
<body>
<header><h1>{escaped(title)}</h1><p>{subtitle}</p></header>
<main>
{"".join(parts)}</main>
<footer>Drawn by moetune on {now}.</footer>
<div id="tip" hidden="hidden"></div>
<script>
//<![CDATA[
{script}//]]>
</script>
</body>
</html>
"""


def section(title, *parts):
    return f"<section>\n<h2>{escaped(title)}</h2>\n{''.join(parts)}</section>\n"


def grid(*figures):
    """Figures beside each other where the window is wide enough, two in a row; empty ones are left out."""
    shown = [f for f in figures if f]
    return f'<div class="grid">{"".join(shown)}</div>\n' if shown else ""


def figure(title, svg, legend="", note=""):
    """A chart under its name; `note` says in a line below what the reader must know of it."""
    below = f'<p class="note">{escaped(note)}</p>' if note else ""
    caption = f"<figcaption><b>{escaped(title)}</b>{legend}</figcaption>"
    return f"<figure>{caption}\n{svg}{below}</figure>\n"


def legend(entries):
    """Of (classes, text), as the chart draws them: "s0", "s0 faint", "s1 dots", "s0 predicted"."""
    keys = "".join(f'<span class="key"><i class="{classes}"></i>{escaped(text)}</span>' for classes, text in entries)
    return f'<span class="legend">{keys}</span>'


def table(head, rows, numbers=(), classes=""):
    """`head` is text, cells of rows are markup; columns of `numbers` stand on the right."""

    def cells(tag, row):
        opened = (f'{tag} class="n"' if i in numbers else tag for i in range(len(head)))
        return "".join(f"<{begin}>{cell}</{tag}>" for begin, cell in zip(opened, row))

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    begin = f'<div class="wide"><table class="{classes}">' if classes else '<div class="wide"><table>'
    return f"{begin}<thead><tr>{cells('th', map(escaped, head))}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"


def details(summary, content, opened=False):
    begin = '<details open="open">' if opened else "<details>"
    return f"{begin}<summary>{escaped(summary)}</summary>\n{content}</details>\n"


def notes(texts):
    """What the reader must know before anything else; nothing where there is nothing."""
    lines = "".join(f"<li>{escaped(line)}</li>" for line in texts)
    return f'<ul class="notes">{lines}</ul>\n' if texts else ""
