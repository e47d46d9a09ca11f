"""Types of errors, and what each costs in AP: TIDE (Bolya et al. 2020, "A General Toolbox for Identifying Object Detection Errors")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lit_detect.analysis import average_precisions
from lit_detect.matches import Matches

__all__ = ["ERROR_TYPES", "ErrorType", "Errors", "error_costs", "find_errors"]

ERROR_TYPES = ("class", "localisation", "both", "duplicate", "background", "missed")
CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)


class Errors(NamedTuple):
    """The type of each error.

    Attributes:
        kinds: ``(D,)`` int64: of each wrong detection, as an index into `ERROR_TYPES`; -1 for those that are true or ignored.
        missed: ``(T,)`` bool: targets that were not found, nor meant by a detection of the wrong class or in the wrong place.
        mended: ``(M,)`` the detections that would be true in the right class and place, an index into ``(D,)``: the best for each target
            that was not found.
        found: ``(M,)`` the targets that these would find, an index into ``(T,)``.
    """

    kinds: np.ndarray
    missed: np.ndarray
    mended: np.ndarray
    found: np.ndarray


def find_errors(matches: Matches, background: float = 0.1) -> Errors:
    """The type of each error: section 3.2. Where two apply, the authors' code says which goes first.

    Args:
        matches: at the overlap from which on a detection is in the right place, the paper's t_f = .5.
        background: the overlap up to which a detection is on background, the paper's t_b = .1.
    """
    own, other, placed = matches.overlaps, matches.other_overlaps, matches.iou_threshold
    kinds = np.select(
        [~matches.false, (own >= background) & (own < placed), other >= placed, own >= placed, np.maximum(own, other) <= background],
        [-1, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    near = np.flatnonzero((kinds == CLASS) | (kinds == LOCALISATION))
    near = near[np.argsort(-matches.scores[near], kind="stable")]
    meant = np.where(kinds == CLASS, matches.other_nearest, matches.nearest)[near]
    found, best = np.unique(meant, return_index=True)  # the first of each, which scores best
    missed = matches.missed
    kept = missed[found]
    missed[found] = False
    return Errors(kinds, missed, near[best[kept]], found[kept])


@dataclass(frozen=True)
class ErrorType:
    """How many errors of a type there are, and what they cost.

    Attributes:
        count: their number.
        cost: AP with these mended less AP as it is (section 3.3), at the matches' overlap, 0..1; it can be below 0.
    """

    count: int
    cost: float


def error_costs(matches: Matches, background: float = 0.1) -> dict[str, ErrorType]:
    """Number and cost of the errors of each of the `ERROR_TYPES`; empty where there are no targets.

    Mended, a detection of the wrong class or in the wrong place is true if it is the best for a target that was not found, and gone
    otherwise; one of the other errors is gone; a missed target is not to be found (section 3.3). A class of which nothing is found or
    mended keeps its AP of 0.

    Args:
        matches: at the paper's t_f = .5, or another overlap.
        background: see `find_errors`.
    """
    counts = matches.target_counts()
    if not counts.any():
        return {}
    errors = find_errors(matches, background)

    def mean(labels: np.ndarray, true: np.ndarray, kept: np.ndarray, counts_left: np.ndarray = counts) -> float:
        values = average_precisions(labels[kept], matches.scores[kept], true[kept], counts_left)
        return sum(values.values()) / np.count_nonzero(counts)

    counted, costs = ~matches.ignored, {}
    as_it_is = mean(matches.labels, matches.true, counted)
    for kind, name in enumerate(ERROR_TYPES[:MISSED]):
        mended = errors.kinds[errors.mended] == kind
        labels, true, kept = matches.labels.copy(), matches.true, counted & (errors.kinds != kind)
        labels[errors.mended[mended]] = matches.target_labels[errors.found[mended]]
        true[errors.mended[mended]] = kept[errors.mended[mended]] = True
        costs[name] = ErrorType(int((errors.kinds == kind).sum()), mean(labels, true, kept) - as_it_is)
    left = counts - np.bincount(matches.target_labels[errors.missed], minlength=len(counts))
    costs["missed"] = ErrorType(int(errors.missed.sum()), mean(matches.labels, matches.true, counted, left) - as_it_is)
    return costs
