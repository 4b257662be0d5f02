"""Takes the comment behind an attribute for its docstring, as in `hits: int = 0  # gets answered from the cache`."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class TrailingComments(griffe.Extension):
    """For the dataclasses whose fields are explained beside them: `Stats`, `Explanation`."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs: Any
    ) -> None:
        """Give an attribute of a class its comment."""
        if attr.docstring is not None or not isinstance(attr.parent, griffe.Class) or attr.endlineno is None:
            return
        line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
        _, found, comment = line.partition("  # ")
        if found:
            attr.docstring = griffe.Docstring(f"{comment[0].upper()}{comment[1:]}.", parent=attr)
