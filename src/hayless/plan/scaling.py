"""Scaling laws: loss from parameters N, tokens D and compute C = 6ND, and a fit of one's own.

Kaplan et al., 2020 (arXiv:2001.08361, section 1.2): N without embeddings, C in PF-days. Hoffmann et al., 2022
(arXiv:2203.15556): L = E + A/N^α + B/D^β, N with embeddings; coefficients as printed in appendix D.2, and unrounded as
in the paper's source. Besiroglu et al., 2024 (arXiv:2404.10102, table 1) quote the source and fitted the law anew.
Table 3 and figure 4 of Chinchilla were checked against the paper's text. Losses are nats a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hayless.core.errors import RequestError, bad_value
from hayless.core.units import format_count
from hayless.plan.table import Table

PF_DAY = 1e15 * 86_400
"""FLOPs of a petaflop/s kept up for a day."""
TOKENS_A_PARAMETER = 20


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """(scale / x)^exponent."""

    scale: float
    exponent: float

    def loss(self, x: float) -> float:
        """The loss at x."""
        return (self.scale / x) ** self.exponent


@dataclass(frozen=True, slots=True)
class Parametric:
    """E + A/N^α + B/D^β."""

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss of N parameters after D tokens."""
        return self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta

    @property
    def size_exponent(self) -> float:
        """a in N_opt ∝ C^a; D_opt ∝ C^(1−a)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D of least loss with 6ND = C (equation 4 of the paper)."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        parameters = ratio * (flops / 6) ** self.size_exponent
        return parameters, flops / 6 / parameters

    def formula(self) -> str:
        """The law in a line."""
        return f"{self.irreducible:.6g} + {self.a:.6g}/N^{self.alpha:.4g} + {self.b:.6g}/D^{self.beta:.4g}"


KAPLAN = {"N": PowerLaw(8.8e13, 0.076), "D": PowerLaw(5.4e13, 0.095), "C": PowerLaw(3.1e8, 0.050)}
CHINCHILLA = Parametric(1.69, 406.4, 410.7, 0.34, 0.28)
CHINCHILLA_UNROUNDED = Parametric(1.6934, 406.4, 410.7, 0.3392, 0.2849)
REFIT = Parametric(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
GOPHER_FLOPS = 5.76e23
"""Chinchilla's and Gopher's budget, by table 3."""

SOURCE = "Chinchilla (arXiv:2203.15556), table 3: parameters, FLOPs and tokens for training at the optimum"
PUBLISHED = (
    ("400M", 400e6, 1.92e19, 8.0e9),
    ("1B", 1e9, 1.21e20, 20.2e9),
    ("10B", 10e9, 1.23e22, 205.1e9),
    ("67B", 67e9, 5.76e23, 1.5e12),
    ("175B", 175e9, 3.85e24, 3.7e12),
    ("280B", 280e9, 9.90e24, 5.9e12),
    ("520B", 520e9, 3.43e25, 11.0e12),
    ("1T", 1e12, 1.27e26, 21.2e12),
    ("10T", 10e12, 1.30e28, 216.2e12),
)


def flops(parameters: float, tokens: float) -> float:
    """C ≈ 6ND."""
    return 6 * parameters * tokens


def losses(parameters: float, tokens: float) -> Table:
    """What each law predicts for a model trained so."""
    for field, value in (("parameters", parameters), ("tokens", tokens)):
        if not (value > 0 and math.isfinite(value)):
            raise bad_value(field, value, allowed="a number above 0")
    compute = flops(parameters, tokens)
    rows = [
        ("Kaplan, by parameters alone", KAPLAN["N"].loss(parameters)),
        ("Kaplan, by tokens alone", KAPLAN["D"].loss(tokens)),
        ("Kaplan, by compute alone", KAPLAN["C"].loss(compute / PF_DAY)),
        ("Chinchilla", CHINCHILLA.loss(parameters, tokens)),
        ("Chinchilla, refitted", REFIT.loss(parameters, tokens)),
    ]
    budget = (
        f"C = 6ND = {compute:.3g} FLOPs ({compute / PF_DAY:.3g} PF-days), {tokens / parameters:.3g} tokens a parameter"
    )
    best = {name: law.optimum(compute) for name, law in (("Chinchilla", CHINCHILLA), ("refitted", REFIT))}
    notes = [
        budget + f"; at {TOKENS_A_PARAMETER} it would take {format_count(TOKENS_A_PARAMETER * parameters)} tokens."
    ]
    notes += [
        f"Best for that compute, {name}: {format_count(n)} parameters and {format_count(d)} tokens ({d / n:.3g} each)."
        for name, (n, d) in best.items()
    ]
    notes.append("Kaplan's N leaves embeddings out, and each of its laws assumes that the other two are no limit.")
    return Table(
        f"Loss of {format_count(parameters)} parameters after {format_count(tokens)} tokens",
        ("law", "nats a token"),
        tuple((name, f"{loss:.4f}") for name, loss in rows),
        tuple(
            {"law": name, "loss_nats": loss, "parameters": parameters, "tokens": tokens, "flops": compute}
            for name, loss in rows
        ),
        tuple(notes),
    )


def published() -> Table:
    """Chinchilla's table of optimal training, with 6ND and the losses of both fits."""
    cells, records = [], []
    for name, parameters, printed, tokens in PUBLISHED:
        ours = flops(parameters, tokens)
        fitted = [law.loss(parameters, tokens) for law in (CHINCHILLA, REFIT)]
        cells.append(
            (
                name,
                format_count(tokens),
                f"{ours:.2e}",
                f"{printed:.2e}",
                f"{ours / printed - 1:+.1%}".replace("-", "−"),
                f"{tokens / parameters:.1f}",
                *(f"{loss:.3f}" for loss in fitted),
            )
        )
        records.append(
            {
                "parameters": parameters,
                "tokens": tokens,
                "flops": ours,
                "printed_flops": printed,
                "tokens_per_parameter": tokens / parameters,
                "chinchilla_loss_nats": fitted[0],
                "refit_loss_nats": fitted[1],
            }
        )
    laws = {"printed": CHINCHILLA, "unrounded": CHINCHILLA_UNROUNDED, "refitted": REFIT}
    best = ", ".join(f"{format_count(law.optimum(GOPHER_FLOPS)[0])} {name}" for name, law in laws.items())
    return Table(
        "Scaling: the optimum by Chinchilla's first approach",
        ("parameters", "tokens", "6ND", "printed FLOPs", "off", "tokens each", "loss", "loss, refitted"),
        tuple(cells),
        tuple(records),
        (
            "Kaplan: L(N) = (8.8e13/N)^0.076, L(D) = (5.4e13/D)^0.095, L(C) = (3.1e8/C)^0.050, C in PF-days.",
            f"Chinchilla: L = {CHINCHILLA.formula()}; refitted: {REFIT.formula()}.",
            f"Best N for Gopher's {GOPHER_FLOPS:.3g} FLOPs: {best}. Chinchilla's figure 4 says 40B, which the printed"
            " digits do not give.",
        ),
        SOURCE,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """L(N) = a/N^b + c by least squares, and the largest residual."""

    a: float
    b: float
    c: float
    worst: float

    def loss(self, parameters: float) -> float:
        """The loss at N."""
        return self.a / parameters**self.b + self.c


def fit(points: Sequence[tuple[float, float]]) -> Fit:
    """Fit a/N^b + c to (N, loss) points: for each b the best a and c are exact; b is searched from 0.01 to 2."""
    sizes = {size for size, _ in points}
    if len(sizes) < 3:
        raise RequestError(
            f"A fit of three numbers needs at least 3 different sizes; there are {len(sizes)}.",
            hint="Give points as N:LOSS,N:LOSS,N:LOSS, such as 1M:4.1,10M:3.4,100M:2.9.",
        )
    for size, loss in points:
        if not (size > 0 and math.isfinite(size) and math.isfinite(loss)):
            raise bad_value("points", f"{size:g}:{loss:g}", allowed="sizes above 0 and finite losses")
    low, high = math.log(0.01), math.log(2)
    grid = [low + (high - low) * step / 400 for step in range(401)]
    best = min(grid, key=lambda logarithm: _squares(points, math.exp(logarithm)))
    left, right = best - (high - low) / 400, best + (high - low) / 400
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        span = golden * (right - left)
        if _squares(points, math.exp(right - span)) < _squares(points, math.exp(left + span)):
            right = left + span
        else:
            left = right - span
    exponent = math.exp((left + right) / 2)
    if best in (grid[0], grid[-1]):
        raise RequestError(
            "The points do not bend like a/N^b + c: the best b lies outside 0.01 to 2.",
            hint="Losses must fall with N, by less and less.",
        )
    a, c = _linear(points, exponent)
    found = Fit(a, exponent, c, 0.0)
    return Fit(a, exponent, c, max(abs(found.loss(size) - loss) for size, loss in points))


def fitted(points: Sequence[tuple[float, float]]) -> Table:
    """A fit as a table of the points, and the formula."""
    law = fit(points)
    rows = [(size, loss, law.loss(size)) for size, loss in points]
    return Table(
        "L(N) = a/N^b + c fitted to the points given",
        ("parameters", "loss", "fitted"),
        tuple((format_count(size), f"{loss:.4f}", f"{found:.4f}") for size, loss, found in rows),
        tuple(
            [{"parameters": size, "loss_nats": loss, "fitted_loss_nats": found} for size, loss, found in rows]
            + [{"a": law.a, "b": law.b, "c": law.c, "worst_residual_nats": law.worst}]
        ),
        (f"L(N) = {law.a:.4g}/N^{law.b:.4g} + {law.c:.4g}; largest residual {law.worst:.2g}.",),
    )


def _linear(points: Sequence[tuple[float, float]], exponent: float) -> tuple[float, float]:
    """a and c of least squares where b is known."""
    xs = [size**-exponent for size, _ in points]
    mean, level = sum(xs) / len(xs), sum(loss for _, loss in points) / len(points)
    spread = sum((x - mean) ** 2 for x in xs)
    a = sum((x - mean) * (loss - level) for x, (_, loss) in zip(xs, points, strict=True)) / spread
    return a, level - a * mean


def _squares(points: Sequence[tuple[float, float]], exponent: float) -> float:
    a, c = _linear(points, exponent)
    return sum((a * size**-exponent + c - loss) ** 2 for size, loss in points)
