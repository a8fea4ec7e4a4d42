"""What loss a budget buys: the parametric law L(N, D) = E + A / N^alpha + B / D^beta, and the N and D that minimise it at
6 N D = C FLOPs. N counts all parameters, D tokens; the losses are of the corpus and tokenizer of Hoffmann et al., so that
they rank choices and predict no run of another vocabulary."""

from dataclasses import dataclass


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
# A refit of the same runs, which agrees with the other two approaches of that paper; arXiv 2404.10102, table 1
BESIROGLU = ScalingLaw("Besiroglu et al. 2024", E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
LAWS = (HOFFMANN, BESIROGLU)
