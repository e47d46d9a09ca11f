"""What is wrong with annotations: one list of kinds, and what is done about each."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Literal, NamedTuple

from lit_detect.errors import InputError, printable

__all__ = ["MENDED", "NOTES", "WRONG", "Fault", "Faults", "OnInvalid"]

log = logging.getLogger(__name__)

OnInvalid = Literal["raise", "fix", "drop"]

# Kinds of faults that can be mended without guessing, and how
MENDED = {
    "box partly outside": "clipped to the image",
    "box without area": "left out",
    "corners swapped": "put in order",
    "size missing": "the image's taken",
    "size of the turned image": "image turned as its EXIF tag says",
    "listed twice": "used once",
}
# Kinds that need a person, and what is left out with `on_invalid: drop`
WRONG = {
    "annotation unreadable": "image",
    "name leaves the folder": "image",
    "image missing": "image",
    "image unreadable": "image",
    "size not the image's": "image",
    "id wrong": "annotation",
    "id repeated": "annotation",
    "id dangling": "annotation",
    "box not four numbers": "box",
    "box outside": "box",
    "class missing": "box",
    "class unknown": "box",
}
# What some programs trip over and this one reads as it is
NOTES = (
    "float coordinates",
    "boxes of parts",
    "polygon taken as its box",
    "gaps in category ids",
    "crowd with RLE",
    "EXIF orientation",
    "CMYK",
    "16 bits",
    "grey",
    "palette",
    "alpha",
    "animated",
    "file unlisted",
    "no label file",
)


class Fault(NamedTuple):
    """One fault.

    Attributes:
        kind: a key of `MENDED` or `WRONG`, or one of `NOTES`.
        file: the annotation file, or the image where the fault is in that.
        annotation: which of the file's annotations: ``object 3``, ``annotation 17``; empty if it is the file itself.
        detail: what was expected and what was found.
    """

    kind: str
    file: str
    annotation: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.annotation else ''}{self.annotation}: {self.detail}"


class Faults(list[Fault]):
    """The faults of a data set. Readers add what they find and go on without it; at the end `settle` decides."""

    def report(self, kind: str, file: object, annotation: str, detail: str) -> None:
        """Add a fault."""
        self.append(Fault(kind, str(file), annotation, detail))

    def counts(self) -> Counter[str]:
        """How many there are of each kind."""
        return Counter(fault.kind for fault in self)

    def settle(self, where: str, on_invalid: OnInvalid) -> None:
        """Go on, and say what was mended or left out; or not.

        Args:
            where: what to call the data set.
            on_invalid: ``raise`` at any fault, ``fix`` what is safe to fix and raise at the rest, or ``drop`` what cannot be fixed.

        Raises:
            InputError: faults that are not to be lived with, each kind with its count and an example.
        """
        mended, wrong = [[fault for fault in self if fault.kind in kinds] for kinds in (MENDED, WRONG)]
        if on_invalid == "raise" and (mended or wrong):
            raise InputError(f"{where}: {describe(mended + wrong)}. `audit` lists them all; on_invalid: fix mends what is safe to mend.")
        if on_invalid == "fix" and wrong:
            raise InputError(f"{where}: {describe(wrong)}. `audit` lists them all; on_invalid: drop goes on without them.")
        if mended or wrong:
            from lightning.fabric.utilities.rank_zero import rank_zero_only  # not on top: it imports Lightning

            rank_zero_only(log.warning)(
                printable(f"{where}: {describe(mended + wrong, MENDED | {kind: f'{what} left out' for kind, what in WRONG.items()})}")
            )


def describe(faults: list[Fault], done: dict[str, str] | None = None) -> str:
    """Each kind with its count, what is done about it, and up to three examples.

    >>> describe([Fault("box without area", "a.xml", "object 1", "xmin 5 = xmax 5"), Fault("box without area", "b.xml", "object 2", "...")])
    '2 x box without area: a.xml, object 1: xmin 5 = xmax 5 | b.xml, object 2: ...'
    """
    parts = []
    for kind, count in Faults(faults).counts().most_common():
        examples = [str(fault).rstrip(".") for fault in faults if fault.kind == kind][:3]
        what = f" ({done[kind]})" if done else ""
        parts.append(f"{count} x {kind}{what}: {' | '.join(examples)}{' | ...' if count > 3 else ''}")
    return "; ".join(parts)
