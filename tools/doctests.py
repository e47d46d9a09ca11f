"""An extension of griffe (mkdocs.yml names it): examples in docstrings are code on the site, and not quotations of quotations."""

import re
from typing import Any

import griffe

EXAMPLES = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.M)  # up to an empty line


class FencedDoctests(griffe.Extension):
    """Puts what looks like a session of Python between fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = EXAMPLES.sub(r"\1```pycon\n\g<0>\n\1```", obj.docstring.value)
