r"""Exponential multistep: the semilinear ODE solved with an interpolated prediction, on every linear process.

$$ d(P^{-1} z) = d(P^{-1} Q)\, y, \qquad
   z_s = P_s P_t^{-1} z_t + \sum_j B_j y_j, \qquad
   B_j = P_s \int_t^s \ell_j(u(\tau))\, d(P^{-1} Q)_\tau $$

Data form: P = R, Q = M, y = D. Noise form: P = Psi, Q = R, y = eps. l_j are the Lagrange polynomials of the last
predictions in a clock u. With the nodes behind t this is exponential Adams-Bashforth: DEIS tAB (noise, u = t), rhoAB
(noise, u = rho), gDDIM (noise, u = t, any process), the exact-coefficient DPM-Solver++ (data, u = log-SNR). With the
prediction at s among the nodes it is the corrector (Adams-Moulton); the call at the predicted state is used again in
the next step, so it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.process.base import Process
from fewstep.process.clock import clock
from fewstep.process.operator import inverse
from fewstep.solver.base import BY_FORM, Moments, Promise, Solver
from fewstep.solver.weights import turn, weights
from fewstep.tableau import Form, Writer
from fewstep.words import among, within

__all__ = ["Multistep"]


@dataclass(frozen=True, kw_only=True)
class Multistep(Solver):
    r"""Exponential Adams multistep in data or noise form, deterministic, with an optional corrector.

    Order: `points`, but with its own start (fewer points in the first steps) at most 2, or 3 with the corrector; with
    the corrector one more than `points`. One call a step, state kept: the last `points` predictions.
    points = 1 without corrector is DDIM (DPM-Solver-1, DEIS of order 0, one-step gDDIM). In data form with
    final_ramp="last" it is DBIM on bridges, after the boot.

    References: Zhang, Chen (DEIS), 2023, https://arxiv.org/abs/2204.13902; Zhang, Tao, Chen (gDDIM), 2022, eq. 18-19
    and appendix B for the corrector, https://arxiv.org/abs/2206.05564; Zhao et al. (UniPC), 2023, for reusing the
    corrector's call, https://arxiv.org/abs/2302.04867; Zheng et al. (DBIM), 2024, https://arxiv.org/abs/2405.15885. We
    differ from DEIS and gDDIM in the quadrature, which is exact to rounding here.

    Args:
        points: how many predictions the interpolant passes through (at least 1).
        form: "data" or "noise".
        clock: "log-snr", "t" or "rho".
        corrector: correct each row with the prediction made at it; never on the last row.
        final_ramp: use fewer points towards the end, one in the last step; "last": one in that step alone.
        root: "R", the root of Sigma that keeps the noise of a point mass constant, or "L", the Cholesky factor, in
            noise form: another on blocks alone, gDDIM's ablation K_t = L_t (L-DEIS in its code). L^-1 (z - M D) turns
            along the ODE, so a point mass is not carried exactly.
        restate: in noise form, give the corrected state its own noise. The noise of a call is that of the predicted
            state, R^-1 (z~ - M D); where P_s P_t^-1 is large (CLD: hundreds) z - z~ times it spoils the corrected one.
            With `restate` the corrector takes eps = R^-1 (z - M D) with the z it is about to make, for which it is
            solved, and later steps read this eps. Only D is then of the predicted state. `moments` are not claimed.
    """

    points: int = 3
    form: str = "data"
    clock: str = "log-snr"
    corrector: bool = False
    final_ramp: bool | str = False
    root: str = "R"
    restate: bool = False

    def __post_init__(self) -> None:
        within(self, points="[1, inf]")
        among(self, form=("data", "noise"), final_ramp=(False, True, "last"))
        if self.root not in ("R", "L") or (self.root == "L" and self.form == "data"):
            raise ValueError(f"got root={self.root!r} in {self.form} form: choose R, or L in noise form")
        if self.restate and (self.form == "data" or not self.corrector or self.root != "R"):
            raise ValueError("got restate=True: it needs the corrector in noise form with the root R; give these")
        clock(self.clock)

    @property
    def promise(self) -> Promise:
        """No moments where the interpolant passes through other numbers than the noise of the calls."""
        start, count = 3 if self.corrector else 2, self.points + self.corrector
        through = self.root == "R" and not self.restate
        return Promise(
            min(count, start, 2 if self.final_ramp else start),
            point_mass=None if self.root == "R" else ("scalar", "diagonal"),
            moments=Moments(self.form, self.clock, tuple(range(count))) if through else None,
            ends=BY_FORM[self.form],
        )

    def write(self, w: Writer) -> None:
        z = ahead = w.start
        nodes: list[tuple[float, Form]] = []
        for k, (t, s) in enumerate(w.steps):
            y = w.call(ahead, t)
            if self.form == "noise":
                y = turn(w.process, self.root, t) * w.eps(ahead)
            if self.restate and k:
                z, y = self._restated(w, z, w.times[k - 1], t, nodes, ahead)
            elif self.corrector and k:
                z = w.row(self._step(w.process, w.times[k - 1], t, z, [(t, y), *nodes]), t)
            else:
                z = ahead
            nodes = [(t, y), *nodes[: self.points - 1]]
            left = len(w.steps) - k
            used = nodes[:left] if self.final_ramp is True or left == 1 and self.final_ramp else nodes
            ahead = w.row(self._step(w.process, t, s, z, used), s)

    def _step(self, process: Process, t: float, s: float, z: Form, nodes: list[tuple[float, Form]]) -> Form:
        first, coefficients = weights(process, self.form, clock(self.clock), t, s, [u for u, _ in nodes], self.root)
        return Form.total([(first, z), *((b, y) for (_, y), b in zip(nodes, coefficients, strict=True))])

    def _restated(
        self, w: Writer, z: Form, t: float, s: float, nodes: list[tuple[float, Form]], ahead: Form
    ) -> tuple[Form, Form]:
        """The corrected state z_s and its noise eps_s = R_s^-1 (z_s - M_s D), D having been predicted at `ahead`.

        z_s = P_s P_t^-1 z_t + B_s eps_s + sum_j B_j eps_j is linear in z_s: it is solved for.
        """
        p, d = w.process, w.call(ahead, s)
        first, (b, *others) = weights(p, "noise", clock(self.clock), t, s, [s, *(u for u, _ in nodes)])
        r_inv = inverse(p.R(s))
        form = first * z - (b * r_inv * p.M(s)) * d
        form = Form.total([(1.0, form), *((c, y) for (_, y), c in zip(nodes, others, strict=True))])
        z = w.row(inverse(1.0 - b * r_inv) * form, s)
        return z, r_inv * z - (r_inv * p.M(s)) * d
