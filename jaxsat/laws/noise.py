"""What the rows of a table tell of the noise about a law: its draws, and how far the objective may rise by chance.

A unit is what was drawn independently: a group of rows that share their misfit (the seeds and budgets of a width),
or a row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special, stats
from scipy.spatial import cKDTree

from jaxsat.laws.objective import Objective


@dataclass(frozen=True, eq=False)
class Noise:
    """About the law at theta_P. misfit: the relative standard deviation of a unit's loss, where that is known."""

    o: Objective
    theta_P: np.ndarray
    weights_R: np.ndarray  # of mean 1
    unit_R: np.ndarray  # of each row, the number of its unit
    misfit: float | None

    @cached_property
    def residuals_R(self) -> np.ndarray:
        return self.o.residuals(self.theta_P[None])[0]

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of the units beside the constants: R - P of rows; of U groups the part of their
        indicators that is no combination of the law's derivatives, from U - P to U."""
        rows_U = np.bincount(self.unit_R)
        if len(rows_U) == len(self.unit_R):
            return len(self.unit_R) - len(self.theta_P)
        steps_PxP, root_R = 1e-4 * np.eye(len(self.theta_P)), np.sqrt(self.weights_R)
        ahead_PxR, behind_PxR = (self.o.residuals(self.theta_P + sign * steps_PxP) for sign in (1, -1))
        slopes_RxP = (root_R * (ahead_PxR - behind_PxR)).T
        slopes_RxP = slopes_RxP / np.maximum(np.linalg.norm(slopes_RxP, axis=0), 1e-12)
        left_RxP, sigma_P, _ = np.linalg.svd(slopes_RxP, full_matrices=False)
        left_RxP = left_RxP[:, sigma_P > 1e-4 * sigma_P[0]]
        unit_RxU = root_R[:, None] * (self.unit_R[:, None] == np.arange(len(rows_U)))
        unit_RxU = unit_RxU / np.linalg.norm(unit_RxU, axis=0)
        return len(rows_U) - float(((left_RxP.T @ unit_RxU) ** 2).sum())

    @cached_property
    def _means_U(self) -> np.ndarray:
        """The mean residual of each unit."""
        return np.bincount(self.unit_R, self.residuals_R) / np.bincount(self.unit_R)

    def sizes(self, rng: np.random.Generator, draws: int) -> np.ndarray:
        """Standard deviations of a unit's mean residual, one a draw: s^2 / chi^2, which is what the residuals tell of
        it; infinite where the units are no more than the constants."""
        if self.misfit is not None:
            return np.full(draws, self.misfit)
        if self.freedom < 0.5:
            return np.full(draws, np.inf)
        return np.sqrt((self._means_U**2).sum() / rng.chisquare(self.freedom, draws))

    def targets(self, rng: np.random.Generator, sizes_B: np.ndarray) -> np.ndarray:
        """The losses, and B draws about the law: one deviation a unit, of these sizes, and each row's own within it.
        (B + 1) x R."""
        within_R = self.residuals_R - self._means_U[self.unit_R]
        freedom = max(len(within_R) - len(self._means_U), 1)
        sizes_B = np.where(np.isfinite(sizes_B), sizes_B, 0.0)
        shared_BxU = sizes_B[:, None] * rng.normal(size=(len(sizes_B), len(self._means_U)))
        own_BxR = rng.normal(size=(len(sizes_B), len(within_R))) * np.sqrt((within_R**2).sum() / freedom)
        noise_BxR = shared_BxU[:, self.unit_R] + own_BxR
        if self.o.scale == "log":
            drawn_BxR = self.o.target_R * np.exp(noise_BxR - self.residuals_R)
        else:
            fitted_R = self.o.target_R - self.residuals_R
            drawn_BxR = fitted_R + noise_BxR * (1 if self.misfit is None else np.abs(fitted_R))
        return np.vstack([self.o.target_R, drawn_BxR])

    def admits(self, f: np.ndarray, least: float, level: float) -> np.ndarray:
        """Whether objectives f are so little above the least that it may be chance, at `level`.

        The drop-in-dispersion test of Schrader & Hettmansperger (1980): 2 rise E[w psi'] / E[w^2 psi^2] is F(1, R - P),
        with psi the derivative of the Huber term and w the rows' weights; of groups psi is summed over each. E[psi'] /
        2 delta is the density of residuals at 0, taken here over the inner half of them, as few may lie within delta.
        A residual counts as delta / 1000 at least: rounding is not evidence. Where the misfit is known residuals are
        normal, and it is chi^2.
        """
        r_R, delta, rows = self.residuals_R, self.o.delta, len(self.residuals_R)
        if self.misfit is not None:
            fitted_R = np.ones(rows) if self.o.scale == "log" else self.o.target_R - r_R
            z_R = delta / (self.misfit * np.abs(fitted_R))
            inside_R = special.erf(z_R / np.sqrt(2))
            square_R = (inside_R - z_R * np.sqrt(2 / np.pi) * np.exp(-(z_R**2) / 2)) / z_R**2 + 1 - inside_R
            slope = (self.weights_R * inside_R).mean()
            spread = (np.bincount(self.unit_R, self.weights_R * delta * np.sqrt(square_R)) ** 2).sum() / rows
            return 2 * (f - least) * slope / spread <= stats.chi2.ppf(level, 1)
        if self.freedom < 0.5:
            return np.isfinite(f)
        reach = max(delta, float(np.median(np.abs(r_R))))
        slope = (self.weights_R * (np.abs(r_R) <= reach)).mean() * delta / reach
        psi_R = np.where(r_R < 0, -1, 1) * np.clip(np.abs(r_R), delta / 1000, delta)
        psi_U = np.bincount(self.unit_R, self.weights_R * psi_R)
        spread = (psi_U**2).sum() * len(psi_U) / (rows * self.freedom)
        return 2 * (f - least) * slope / spread <= stats.f.ppf(level, 1, self.freedom)

    @cached_property
    def roughness(self) -> float:
        """The median residual over that of a smooth curve through the rows, or over delta where that is more.

        The curve at a row is the plane through its nearest others, in the logarithms of the inputs; its residual is
        brought to the size of one of a curve without error (Gasser et al. 1986). Rows of less than the median weight
        do not count. 0 with too few rows for a plane.
        """
        x_RxF = np.log(np.stack([*self.o.columns.values()], axis=1))
        x_RxF = (x_RxF - x_RxF.mean(axis=0)) / np.maximum(x_RxF.std(axis=0), 1e-12)
        y_R = np.log(self.o.target_R) if self.o.scale == "log" else self.o.target_R
        near = x_RxF.shape[1] + 2
        if len(y_R) <= near:
            return 0.0
        _, found_RxK = cKDTree(x_RxF).query(x_RxF, near + 1)
        others_RxK = np.array([[k for k in row if k != i][:near] for i, row in enumerate(found_RxK)])
        design_RxKxF = x_RxF[others_RxK] - x_RxF[:, None]
        design_RxKxF = np.concatenate([np.ones((*others_RxK.shape, 1)), design_RxKxF], axis=2)
        take_RxK = np.linalg.pinv(design_RxKxF, rcond=1e-6)[:, 0]
        smooth_R = (y_R - (take_RxK * y_R[others_RxK]).sum(axis=1)) / np.sqrt(1 + (take_RxK**2).sum(axis=1))
        counts_R = self.weights_R >= np.median(self.weights_R)
        median = lambda r_R: float(np.median(np.abs(r_R[counts_R])))
        return median(self.residuals_R) / max(median(smooth_R), self.o.delta)
