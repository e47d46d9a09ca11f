"""Types of errors, and what each costs in AP: TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors")."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_detect.analysis import Matches

__all__ = ["ERROR_TYPES", "ErrorType", "Errors", "error_costs", "find_errors"]

ERROR_TYPES = ("class", "localisation", "both", "duplicate", "background", "missed")


class Errors(NamedTuple):
    """The type of each error.

    Attributes:
        kinds: ``(D,)`` int64: of each wrong detection, as an index into `ERROR_TYPES`; -1 for those that are true or ignored.
        missed: ``(T,)`` bool: targets that no detection found, nor would have found but for its class or its place.
    """

    kinds: np.ndarray
    missed: np.ndarray


def find_errors(matches: Matches, background: float = 0.1) -> Errors:
    """The type of each error by section 3.2, figure 2.

    Args:
        matches: at the overlap from which on a detection is in the right place, the paper's t_f = .5.
        background: the overlap under which a detection is on background, the paper's t_b = .1.
    """
    raise NotImplementedError


class ErrorType(NamedTuple):
    """How many errors of a type there are, and what they cost.

    Attributes:
        count: their number.
        cost: AP50 with these mended less AP50 as it is (section 3.3), 0..1; it can be below 0.
    """

    count: int
    cost: float


def error_costs(matches: Matches, background: float = 0.1) -> dict[str, ErrorType]:
    """Number and cost of the errors of each of the `ERROR_TYPES`; no types where there are no targets."""
    raise NotImplementedError
