"""From a ModelArchitectureConfig to a model: the block, the stack, and every initial weight.

    model = ConfigurableGPT(get_preset_config("qwen3"), seed=0)
    logits, _ = model(input_ids)              # input_ids [B, T] -> logits [B, T, vocab_size]
    _, loss = model(input_ids, targets)       # targets [B, T], already shifted by one; -100 is ignored

The model knows no rank, no optimizer and no run. Parallelism walks `model.blocks` from outside.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor

from model_components import FFNS, NORMS, POSITION_ENCODINGS, Attention, KVCache, attention_mask
from model_config import ModelArchitectureConfig
from operators.embedding import embed
from operators.linear import Linear, linear
from operators.loss import head_loss

if TYPE_CHECKING:
    from model_components import Mask


class Block(nn.Module):
    """Attention, then a feed-forward network, each added to the residual stream."""

    def __init__(self, config: ModelArchitectureConfig, layer: int) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention_norm = NORMS[config.normalization](config.n_embd, config)
        self.attention = Attention(config, layer)
        self.ffn_norm = NORMS[config.normalization](config.n_embd, config)
        self.ffn = FFNS[config.ffn_type](config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        kv_cache: KVCache | None = None,
        mask: "Mask" = None,
    ) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), angles, kv_cache, mask))
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        else:  # Vaswani et al. 2017: the norm sits on the residual stream itself
            x = self.attention_norm(x + self.dropout(self.attention(x, angles, kv_cache, mask)))
            x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return x


class ConfigurableGPT(nn.Module):
    """A decoder-only transformer. Its initial weights are a function of (seed, parameter name) alone."""

    def __init__(self, config: ModelArchitectureConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        norm = NORMS[config.normalization]
        with torch.device("meta"):  # shapes first, so that no weight is initialised twice
            self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
            self.position_embedding = POSITION_ENCODINGS[config.position_encoding](config)
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            # A post-norm block ends in its own norm
            self.final_norm = norm(config.n_embd, config) if config.norm_position == "pre" else nn.Identity()
            self.lm_head = (
                None if config.weight_tying else Linear(config.n_embd, config.vocab_size, bias=False)
            )
        self.head_loss = partial(head_loss, backend=config.loss_backend)
        self.z_part: Tensor | None = None  # of the last loss in training: what is z_loss's, no cross-entropy
        if device.type != "meta":
            self.to_empty(device=device)
            init_weights(self, seed)

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, n_embd]: the token embedding where they are tied."""
        return self.token_embedding.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor | None = None,
        document_starts: Tensor | None = None,
        kv_cache: KVCache | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """input_ids [B, T]. Without targets: (logits [B, T, V], None). With targets [B, T]: (None, loss),
        the mean over the targets that are not -100, in nats. With a cache the tokens follow those that it
        holds. With document_starts [B, T], the column where each token's document begins in its row, every
        document is by itself: no token sees another's, and positions begin at 0 in each. Raises ValueError
        for more positions than block_size."""
        x, head = embed(input_ids, self.token_embedding.weight)  # [B, T, C], [V, C]
        if self.lm_head is not None:
            head = self.lm_head.weight
        x = self.stack(x, document_starts, kv_cache)
        if targets is None:
            return linear(x, head), None
        if not (self.training and self.config.z_loss):
            return None, self.head_loss(x, head, targets)
        apart: list[Tensor] = []
        loss = self.head_loss(x, head, targets, z_loss=self.config.z_loss, apart=apart)
        (self.z_part,) = apart
        return None, loss

    def features(
        self, input_ids: Tensor, document_starts: Tensor | None = None, kv_cache: KVCache | None = None
    ) -> Tensor:
        """What the output head reads, [B, T, C]; the arguments are those of forward."""
        return self.stack(self.token_embedding(input_ids), document_starts, kv_cache)

    def stack(self, x: Tensor, document_starts: Tensor | None, kv_cache: KVCache | None) -> Tensor:
        """All between the token embedding and the output head: x [B, T, C] -> [B, T, C]."""
        assert document_starts is None or kv_cache is None
        T = x.size(1)
        start = 0 if kv_cache is None or kv_cache.positions is not None else kv_cache.length
        if start + T > self.config.block_size:
            raise ValueError(
                f"{start + T} positions exceed block_size={self.config.block_size}: shorten the input"
            )
        positions = slice(start, start + T)
        if document_starts is not None:
            positions = torch.arange(T, device=x.device) - document_starts  # [B, T]
        elif kv_cache is not None and kv_cache.positions is not None:
            positions = kv_cache.positions[:, None]  # [B, 1]
        x = self.dropout(self.position_embedding.add(x, positions))
        angles = self.position_embedding.angles(positions)
        mask = attention_mask(self.config, self.training, document_starts, kv_cache)
        for block in self.blocks:
            x = block(x, angles, kv_cache, mask)
        if kv_cache is not None and kv_cache.positions is None:
            kv_cache.length += T
        return self.final_norm(x)

    def fill_tables(self) -> None:
        """Computes what is neither a parameter nor in a checkpoint, the angles of RoPE: needed after
        to_empty()."""
        self.position_embedding.fill_tables()

    def get_num_params(self) -> int:
        """All parameters; tied weights count once."""
        return sum(p.numel() for p in self.parameters())

    def get_num_params_non_embedding(self) -> int:
        """Without token and position embeddings and without the output head: what Qwen's model cards call
        non-embedding."""
        outside = [self.head_weight, self.token_embedding.weight, *self.position_embedding.parameters()]
        return self.get_num_params() - sum(p.numel() for p in {id(p): p for p in outside}.values())


@torch.no_grad()
def init_weights(
    model: ConfigurableGPT, seed: int, assign: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Fills every parameter and table, each parameter from a generator of its own, seeded by (seed, name),
    on the CPU: the same numbers on every device, under every sharding, in every order. `assign(parameter,
    values)` writes a matrix; values are whole, the parameter may be a shard of it.

    | parameters                                | distribution                                              |
    |-------------------------------------------|-----------------------------------------------------------|
    | norm weights (1-D)                        | 1                                                         |
    | biases                                    | 0                                                         |
    | attention.out, ffn.down                   | normal, init_std / sqrt(2 n_layer): 2 n_layer of them add |
    |                                           | up on the residual stream (GPT-2)                         |
    | other matrices, embeddings, untied head   | normal, init_std                                          |
    """
    config = model.config
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        elif p.dim() == 1:
            p.fill_(1.0)
        else:
            assign(p, initial_matrix(config, name, p.shape, seed))
    model.fill_tables()


def initial_matrix(config: ModelArchitectureConfig, name: str, shape: Sequence[int], seed: int) -> Tensor:
    """What init_weights gives the matrix `name`, whole, in fp32 on the CPU."""
    on_residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
    std = config.init_std / math.sqrt(2 * config.n_layer) if on_residual else config.init_std
    generator = torch.Generator("cpu").manual_seed(name_seed(seed, name))
    return torch.empty(shape, device="cpu").normal_(0.0, std, generator=generator)


def name_seed(seed: int, name: str) -> int:
    """63 bits that belong to this seed and this name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
