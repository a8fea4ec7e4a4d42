"""What loss a budget buys: the parametric law L(N, D) = E + A / N^alpha + B / D^beta, and the N and D that
minimise it.

N counts all parameters, D tokens, 6 N D FLOPs. The losses are those of Hoffmann et al.'s corpus and
tokenizer: they rank choices and predict no run with another vocabulary."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from base.errors import InputError
from model_config import ModelArchitectureConfig
from planning.sizes import parameters
from training import flops


@dataclass(frozen=True)
class ScalingLaw:
    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """In nats a token."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def optimum(self, C: float) -> tuple[float, float]:
        """(N, D) of the lowest loss with 6 N D = C; Hoffmann et al. 2022, equation 4."""
        a = self.beta / (self.alpha + self.beta)
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (C / 6) ** a
        return N, C / (6 * N)


# Approach 3; arXiv 2203.15556, equation 10
HOFFMANN = ScalingLaw("Hoffmann et al. 2022", E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
# A refit of the same runs, which agrees with the other two approaches of that paper; arXiv 2404.10102,
# table 1
BESIROGLU = ScalingLaw("Besiroglu et al. 2024", E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
LAWS = (HOFFMANN, BESIROGLU)

WIDTH_PER_LAYER = (32, 128)  # Kaplan et al. 2020, figure 5: within such shapes the loss changes by about 1 %


@dataclass(frozen=True)
class Shape:
    config: ModelArchitectureConfig
    params: int
    tokens: float


def best_shapes(c: ModelArchitectureConfig, C: float, law: ScalingLaw = BESIROGLU) -> list[Shape]:
    """Widths in the proportions of `c`, each at its best depth, trained on as many tokens as C FLOPs buy at
    flops_per_token, which counts the head and attention, unlike 6 N D; lowest predicted loss first. Raises
    InputError where there is none."""
    N_optimum, _ = law.optimum(C)
    shapes = []
    for width in range(128, 20_481, 128):
        n_head = width * c.n_head / c.n_embd
        group = c.n_head // c.num_key_value_heads
        if n_head % group:  # fractions, too
            continue
        depths = list(depths_of(c, width, round(n_head), C))
        if depths and depths[0].params > 30 * N_optimum:
            break
        shapes += sorted(depths, key=lambda s: law.loss(s.params, s.tokens))[:1]
    if not shapes:
        raise InputError(
            f"{C:.3g} FLOPs: no width in the proportions of n_head={c.n_head}, n_embd={c.n_embd} suits them"
        )
    return sorted(shapes, key=lambda s: law.loss(s.params, s.tokens))


def depths_of(c: ModelArchitectureConfig, width: int, n_head: int, C: float) -> Iterator[Shape]:
    sizes = {
        "n_embd": width,
        "n_head": n_head,
        "num_key_value_heads": n_head * c.num_key_value_heads // c.n_head,
    }
    sizes["d_ff"] = max(64, round(width * c.d_ff / c.n_embd / 64) * 64)
    one, two = (parameters(replace(c, n_layer=n, **sizes)) for n in (1, 2))
    for n_layer in range(max(2, math.ceil(width / WIDTH_PER_LAYER[1])), width // WIDTH_PER_LAYER[0] + 1):
        shape = replace(c, n_layer=n_layer, **sizes)
        yield Shape(shape, one + (n_layer - 1) * (two - one), C / flops.flops_per_token(shape))
