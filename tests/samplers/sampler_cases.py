# SPDX-License-Identifier: Apache-2.0
"""Cases of samplers for the tests of exact solutions: the flow and the marginals of a Gaussian.

For data N(MEAN, STD^2) the score, the flow and every marginal are known and all maps are affine. A table of
rows then carries (1, x, z_0, z_1, ..) as an affine map: no sampling error, so that an order of convergence is
seen cleanly and a wrong coefficient cannot hide.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from exact import apply_exact
from noisefuse import samplers
from noisefuse.schedule import Schedule
from noisefuse.tokens.samplers import __all__ as OF_TOKENS

MEAN, STD = 0.3, 0.6
VP = Schedule.scaled_linear()
FLOW, ZERO_SNR = Schedule.flow(), VP.rescale_zero_terminal_snr()
ALL = sorted({*samplers.__all__} - {"Threshold", *OF_TOKENS})
CFG_PP = {name for name in ALL if name.endswith("cfg_pp")}  # see test_loops.py, too
OF_FLOWS = {"flow_euler", "flow_heun", "rk4", "flow_sde", "flow_cps", "dance_sde"}
FAMILIES = {
    "preserving": lambda s: (1 / np.hypot(1, s), s / np.hypot(1, s)),
    "exploding": lambda s: (np.ones_like(s), s),
    "flow": lambda s: (1 - s, s),
}
FIRST = {"preserving": 5.0, "exploding": 10.0, "flow": 0.9}
TWO_CALLS = ("dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")
EXPLODING_FRAME = (  # these work on x / alpha
    *("euler", "euler_ancestral", "heun", "edm", "lms", "gradient_estimation", "ipndm_v"),
    *("heunpp2", "res_multistep", "seeds_2", "seeds_3", "dpmpp_2m_cfg_pp", "dpm_solver", "dpmpp_2s_ancestral_cfg_pp"),
    *("res_multistep_cfg_pp", "gradient_estimation_cfg_pp"),
    *TWO_CALLS,
)
ON_FLOWS_THEMSELVES = {  # of these, on x itself in a flow
    *("res_multistep", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
}


@dataclass
class Case:
    """One sampler on one family of schedules; its error must show ``order``."""

    name: str
    order: float
    family: str
    options: dict = field(default_factory=dict)
    grade: float = 3.0  # levels are uniform in level^(1 / grade)
    until: float = 0.05  # the last noise level
    consistency: bool = False  # the model is the consistency function, not the posterior mean
    rising: bool = False  # from the least noisy level to the noisiest
    counts: tuple = (32, 64, 128)  # numbers of steps, between which the order is measured

    def __str__(self):
        return "-".join([self.name, self.family, *(f"{k}={v}" for k, v in self.options.items()), *["up"] * self.rising])

    def levels(self, n):
        roots = (level ** (1 / self.grade) for level in (FIRST[self.family], self.until))
        return (np.linspace(*roots, n + 1) ** self.grade)[:: -1 if self.rising else 1]

    def tableau(self, n):
        """Returns the table over a schedule with exactly the wanted noise levels; the last of them ends the run."""
        levels = self.levels(n)
        schedule = Schedule(*FAMILIES[self.family](np.sort(levels)))
        rule = getattr(samplers, self.name).__wrapped__
        own = {"prediction": "sample", "final": "sigma_min", **self.options}
        if self.family != "preserving":
            return rule(schedule, levels=levels[:-1], **own, **{"final_level": levels[-1]} if self.rising else {})
        indices = np.argsort(np.argsort(levels))
        return rule(schedule, indices[:-1], **own | ({"final": indices[-1]} if self.rising else {}))

    def model(self, tableau, n):
        """Returns (constant, slope): the model's answer to x_in at every row, for the Gaussian."""
        level = tableau.timesteps.astype(float)
        if self.family == "preserving":  # a time is an index, or lies between two
            level = np.exp(np.interp(level, np.arange(n + 1), np.log(np.sort(self.levels(n)))))
        alpha, sigma = FAMILIES[self.family](level)
        deviation = np.hypot(alpha * STD, sigma)
        slope = STD / deviation if self.consistency else alpha * STD**2 / deviation**2
        return MEAN * (1 - slope * alpha), slope

    def run(self, n, tableau=None):
        """Returns the coefficients of the last x on (1, x, z_0, z_1, ..)."""
        tableau = tableau or self.tableau(n)
        one, x, *z = np.eye(2 + len(tableau))
        past = []
        for i, (constant, slope) in enumerate(zip(*self.model(tableau, n), strict=True)):
            answer = constant * one + slope * tableau.scale[i] * x
            x, *aux = apply_exact(tableau.rows[i], x, answer, past=past, z=z[i])
            past = [*aux[: tableau.push[i]], *past][:4]
        return x

    def ends(self, n):
        """Returns alpha and sigma at both ends, in the frame of the sampler's x."""
        alpha, sigma = FAMILIES[self.family](self.levels(n)[[0, -1]])
        own = self.name not in EXPLODING_FRAME or (self.name in ON_FLOWS_THEMSELVES and self.family == "flow")
        return (alpha, sigma) if own else (alpha / alpha, sigma / alpha)

    def flow_error(self, n, tableau=None):
        """Returns the distance of the last x from the exact flow's, for an x 1.3 standard deviations above the mean."""
        constant, slope, *noise = self.run(n, tableau)
        assert not any(noise), "a deterministic sampler drew noise"
        alpha, sigma = self.ends(n)
        start, end = alpha * MEAN + 1.3 * np.hypot(alpha * STD, sigma)
        return abs(constant + slope * start - end)

    def marginal_error(self, n, tableau=None):
        """Returns the larger error of mean and variance at the end, from the exact marginal at the start."""
        constant, slope, *noise = self.run(n, tableau)
        assert any(noise), "a stochastic sampler drew no noise"
        alpha, sigma = self.ends(n)
        mean, variance = alpha * MEAN, (alpha * STD) ** 2 + sigma**2
        mean_error = abs(constant + slope * mean[0] - mean[1])
        return max(mean_error, abs(slope**2 * variance[0] + np.dot(noise, noise) - variance[1]))


DETERMINISTIC = [
    Case("ddim", 1, "preserving"),
    Case("ddim", 1, "exploding"),
    Case("ddim", 1, "flow"),
    Case("euler", 1, "preserving"),
    Case("euler", 1, "exploding"),
    Case("flow_euler", 1, "flow"),
    Case("heun", 2, "preserving"),
    Case("heun", 2, "exploding"),
    Case("flow_heun", 2, "flow"),
    Case("rk4", 4, "flow"),
    Case("edm", 2, "exploding"),
    Case("edm", 2, "preserving"),
    Case("dpm_2", 2, "preserving"),
    Case("dpm_2", 2, "exploding"),
    Case("dpm_2", 2, "flow"),
    Case("dpmpp_2m", 2, "preserving"),
    Case("dpmpp_2m", 2, "preserving", {"solver": "heun"}),
    Case("dpmpp_2m", 2, "exploding"),
    Case("dpmpp_2m", 2, "flow"),
    Case("unipc", 2, "preserving", {"order": 1, "lower_order_final": False}),
    Case("unipc", 3, "preserving", {"order": 2, "lower_order_final": False}),
    Case("unipc", 4, "preserving", {"order": 3, "lower_order_final": False}),
    Case("unipc", 3, "exploding", {"order": 2, "variant": "bh1", "lower_order_final": False}),
    # here the first steps, of lower order, are visible: at the noisy end of the others D is constant
    Case("unipc", 3, "flow", {"order": 3, "variant": "bh1", "lower_order_final": False}),
    # Adams-Bashforth weights are for equal steps in sigma / alpha: order 2 elsewhere; there 4, but 3 at first
    Case("pndm", 2, "preserving"),
    Case("pndm", 3.5, "exploding", grade=1.0, until=0.5),
    Case("ipndm", 2, "preserving"),
    Case("ipndm", 3.5, "exploding", grade=1.0, until=0.5),
    Case("lms", 3, "exploding", {"order": 3}),
    Case("lms", 3.5, "exploding", grade=1.0, until=0.5),
    Case("deis", 2, "flow"),
    Case("deis", 3, "exploding", {"order": 3}),
    Case("deis", 3, "exploding", {"order": 3, "variable": "vp_time", "lower_order_final": False}),
    Case("gradient_estimation", 1, "preserving"),
    Case("dpmpp_3m_sde", 3, "exploding", {"eta": 0.0, "exact": True}),
    Case("dpmpp_2m_sde", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_3m_sde", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_singlestep", 2, "exploding"),
    Case("dpmpp_singlestep", 2, "preserving", {"solver": "heun"}),
    Case(
        "dpmpp_singlestep",
        3,
        "preserving",
        {"order": 3, "solver": "heun", "lower_order_final": False},
        counts=(30, 60, 120),
    ),
    Case("dpmpp_sde", 2, "preserving", {"eta": 0.0, "r": 0.3}),
    Case("tcd", 1, "preserving", {"gamma": 0.0}),
    Case("res_multistep", 2, "preserving"),
    Case("res_multistep", 2, "flow"),
    Case("er_sde", 1, "preserving", {"phi": 1.0, "order": 1}),
    Case("er_sde", 2, "flow", {"phi": 1.0, "order": 2}),
    Case("er_sde", 3, "exploding", {"phi": 1.0, "exact": True}),
    Case("seeds_2", 2, "preserving", {"eta": 0.0, "r": 0.4}),
    Case("seeds_2", 2, "exploding", {"eta": 0.0, "solver": "heun"}),
    Case("seeds_3", 3, "exploding", {"eta": 0.0}),
    Case("sa_solver", 2, "preserving", {"tau": 0.0, "predictor_order": 1, "lower_order_final": False}),
    Case("sa_solver", 3, "exploding", {"tau": 0.0, "corrector_order": 3, "lower_order_final": False}),
    Case(
        "sa_solver",
        3,
        "preserving",
        {"tau": 0.0, "predictor_order": 3, "corrector_order": 0, "lower_order_final": False},
    ),
    Case("ipndm_v", 2, "preserving", {"order": 2}),
    Case("heunpp2", 1, "flow", counts=(128, 256, 512)),
    Case("dpm_solver", 1, "preserving", {"order": 1}),
    Case("dpm_solver", 2, "exploding", {"order": 2}),
    Case("dpm_solver", 3, "preserving", {"order": 3}),
    Case("dpm_solver", 3, "flow", {"order": 3}),
    Case("dpm_2_ancestral", 2, "flow", {"eta": 0.0}),
    Case("dpmpp_2s_ancestral", 2, "flow", {"eta": 0.0}),
]
UP = [
    replace(case, rising=True)
    for case in DETERMINISTIC
    if not {3, True} & {case.options.get(name) for name in ("order", "exact", "predictor_order")}
    and case.grade == 3.0
    and case.name != "heunpp2"  # its weights are for noise levels below the first
]
UP += [  # the others begin where D changes most, so that their first steps, of lower order, are visible: 3 in the limit
    Case("unipc", 3.4, "preserving", {"order": 3, "lower_order_final": False}, rising=True),
    Case("pndm", 2.8, "exploding", grade=1.0, until=4.0, rising=True),
]
DETERMINISTIC += UP
STOCHASTIC = [
    Case("ddpm", 1, "preserving"),
    Case("ddpm", 1, "preserving", {"variance": "fixed_large"}),
    Case("ddim", 1, "preserving", {"eta": 1.0}),
    Case("ddim", 1, "flow", {"eta": 0.5}),
    Case("euler_ancestral", 1, "preserving"),
    Case("euler_ancestral", 1, "exploding"),
    Case("edm", 2, "exploding", {"S_churn": 8.0}),
    Case("dpmpp_2m_sde", 2, "preserving"),
    Case("dpmpp_2m_sde", 2, "exploding", {"solver": "heun"}),
    Case("dpmpp_2m_sde", 2, "preserving", {"eta": 0.5}),
    Case("dpmpp_3m_sde", 2, "exploding"),
    Case("dpm_2_ancestral", 2, "preserving"),
    Case("dpmpp_2s_ancestral", 2, "preserving"),
    Case("euler_ancestral", 1, "flow"),
    Case("euler_ancestral", 1, "flow", {"eta": 0.5}, counts=(128, 256, 512)),
    Case("dpm_2_ancestral", 2, "flow"),
    Case("dpm_2_ancestral", 2, "flow", {"eta": 0.5}),
    Case("dpmpp_2s_ancestral", 2, "flow"),
    Case("dpmpp_2s_ancestral", 2, "flow", {"eta": 0.5}),
    Case("dpmpp_sde", 2, "exploding"),
    Case("dpmpp_sde", 2, "preserving", {"eta": 0.5, "r": 0.4}),
    Case("dpmpp_sde", 2, "flow"),
    Case("dpm_solver", 2, "exploding", {"order": 2, "eta": 1.0}),
    Case("dpm_solver", 3, "preserving", {"eta": 0.5}, counts=(128, 256, 512)),
    Case("res_multistep", 2, "preserving", {"eta": 1.0}),
    Case("res_multistep", 2, "flow", {"eta": 0.5}),
    Case("er_sde", 2, "flow"),
    Case("er_sde", 2, "preserving", {"phi": 2.0, "order": 2}),
    Case("seeds_2", 2, "preserving"),
    Case("seeds_2", 2, "exploding", {"eta": 0.5, "solver": "heun", "r": 0.6}),
    Case("seeds_3", 2, "preserving", counts=(128, 256, 512)),
    Case("sa_solver", 2, "preserving", {"predictor_order": 1}),
    Case("sa_solver", 2, "flow", {"corrector_order": 0}),
    Case("repaint", 1, "preserving", {"jump_length": 5, "jump_n_sample": 3}),
    Case("repaint", 1, "exploding", {"eta": 0.0, "jump_length": 10, "jump_n_sample": 2}),
    Case("flow_sde", 1, "flow", counts=(128, 256, 512)),  # here its noise is small beside the drift
    Case("dance_sde", 1, "flow", {"eta": 0.5}, counts=(128, 256, 512)),
]


def gaussian_model(schedule):
    """Returns an epsilon network's answer for the Gaussian."""

    def model(x, t):
        alpha, sigma = schedule.alpha[int(t)], schedule.sigma[int(t)]
        constant = MEAN * (1 - alpha**2 * STD**2 / (alpha**2 * STD**2 + sigma**2))
        clean = constant + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x
        return (x - alpha * clean) / sigma

    return model
