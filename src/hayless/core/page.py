"""Pages that work offline: one file each, which asks nothing of the network and runs no code but its own.

What comes from elsewhere reaches a page escaped by Jinja, or as JSON in a script element of a type that does not run,
and from there as text nodes. A content policy with the hashes of the page's own style and scripts lets nothing else
run, should anything slip through.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any


def render(template: str, data: Any, *, style: str, script: str, engine: str = "", **shown: Any) -> str:
    """A page as text, from a Jinja template and what it shows.

    `style` and `script` come after those of all pages (`templates/page.css` and `page.js`), which find `data` as the
    script's `data`. `engine` is a script of its own, which a worker can be made from.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    whole_style = text("hayless.core", "page.css") + style
    whole_script = f'(() => {{\n"use strict";\n{text("hayless.core", "page.js")}\n{script}}})();'
    # keep_trailing_newline and no trimming: the hashes in the content policy are of the texts exactly as they stand.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        data=Markup(script_json(data)),
        style=Markup(whole_style),
        script=Markup(whole_script),
        engine=Markup(engine),
        style_hash=_hash(whole_style),
        script_hash=_hash(whole_script),
        engine_hash=_hash(engine),
        **shown,
    )
    return page.encode("utf-8", errors="replace").decode("utf-8")  # a lone surrogate cannot stand in a file


def script_json(content: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or start a comment."""
    found = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        found = found.replace(letter, f"\\u{ord(letter):04x}")
    return found


def text(package: str, name: str) -> str:
    """A file of a package's `templates`."""
    return (files(package) / "templates" / name).read_text(encoding="utf-8")


def _hash(of: str) -> str:
    """The hash that a content policy names a text by."""
    return base64.b64encode(hashlib.sha256(of.encode()).digest()).decode()
