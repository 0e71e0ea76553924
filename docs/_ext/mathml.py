"""Formulas as MathML, which browsers draw themselves: the built pages need no script, no font and no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def mathml(latex: str, *, block: bool) -> str:
    """A ``<math>`` element.  Raises ExtensionError, naming the formula, for what the converter does not know."""
    try:
        out = convert(latex, display="block" if block else "inline")
    except Exception as error:  # it raises many kinds; all mean the same to the writer
        raise ExtensionError(f"not a formula that can be drawn ({error}): {latex}") from error
    if "\\" in out:  # an unknown command goes through as text, and would stand in the page as such
        logger.warning("unknown command in the formula %s", latex)
    return str(out)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    identity = f' id="{node["ids"][0]}"' if node["ids"] else ""
    number = ""
    if node["number"]:
        number = f'<span class="eqno">({get_node_equation_number(writer, node)})</span>'
    writer.body.append(f'<div class="math"{identity} tabindex="0">{number}{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
