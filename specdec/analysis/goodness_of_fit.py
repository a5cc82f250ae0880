"""Does a sample follow a distribution, and what would the test have caught if it did not?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

MIN_EXPECTED = 5  # cells expected less often are pooled, for the chi-square approximation to hold


@dataclass(frozen=True)
class GoodnessOfFit:
    """A chi-square test of `draws` draws: its statistic, degrees of freedom and p-value."""

    draws: int
    statistic: float
    degrees: int
    p_value: float

    def detectable_total_variation(self, significance: float, power: float = 0.99) -> float:
        """The smallest total variation that is surely caught: rejected with this power.

        A distribution at total variation d has a chi-square distance of at least (2d)²
        (Cauchy-Schwarz), so the statistic is noncentral chi-square, of parameter draws·(2d)² up.
        """
        critical = stats.chi2.isf(significance, self.degrees)

        def shortfall(noncentrality: float) -> float:
            return stats.ncx2.sf(critical, self.degrees, noncentrality) - power

        noncentrality = optimize.brentq(shortfall, 1e-9, 1e6)
        return float(np.sqrt(noncentrality / self.draws) / 2)


def goodness_of_fit(observed: np.ndarray, expected: np.ndarray) -> GoodnessOfFit:
    """Chi-square test of counts `observed` against probabilities `expected`, both `[cells]`.

    A draw in a cell of probability 0 gives p-value 0. Rare cells are pooled into one.
    """
    draws = int(observed.sum())
    if observed[expected <= 0].sum() > 0:
        return GoodnessOfFit(draws, float("inf"), 1, 0.0)
    counts = draws * expected
    rare = counts < MIN_EXPECTED
    seen, due = observed[~rare].astype(float), counts[~rare]
    if counts[rare].sum() > 0:
        seen = np.append(seen, observed[rare].sum())
        due = np.append(due, counts[rare].sum())
    due *= draws / due.sum()  # exact up to rounding already
    statistic, p_value = stats.chisquare(seen, due)
    return GoodnessOfFit(draws, float(statistic), max(len(seen) - 1, 1), float(p_value))
