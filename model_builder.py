"""From a ModelArchitectureConfig to a model: the block, the stack, and every initial weight.

    model = ConfigurableGPT(get_preset_config("qwen3"), seed=0)
    logits, _ = model(input_ids)              # input_ids [B, T] -> logits [B, T, vocab_size]
    _, loss = model(input_ids, targets)       # targets [B, T], already shifted by one; -100 is ignored

The model knows no rank, no optimizer and no run. Parallelism walks `model.blocks` from outside.
"""

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from base.errors import InputError
from model_components import FFNS, NORMS, Attention, KVCache, RoPE, document_mask
from model_config import ModelArchitectureConfig
from operators.linear import Linear, linear
from operators.loss import head_loss

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


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
        mask: "Tensor | BlockMask | None" = None,
    ) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), angles, kv_cache, mask))
            x = x + self.dropout(self.ffn(self.ffn_norm(x)))
        else:  # Vaswani et al. 2017: the norm sits on the residual stream itself
            x = self.attention_norm(x + self.dropout(self.attention(x, angles, kv_cache, mask)))
            x = self.ffn_norm(x + self.dropout(self.ffn(x)))
        return x


class Embedding(torch.autograd.Function):
    """weight [V, C], ids [B, T] -> the rows of the ids [B, T, C], and the weight once more, for an output
    head that is tied to it. The gradient of the rows is added to that of the head, instead of to a second
    [V, C] of zeros."""

    @staticmethod
    def forward(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: tuple
    ) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, grad_head: Tensor
    ) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        # create_graph=True, for a second derivative, which nothing compiled has
        if (grad.requires_grad or grad_head.requires_grad) and not torch.compiler.is_compiling():
            return grad_head.index_add(0, ids.flatten(), grad.flatten(0, 1).to(grad_head.dtype)), None
        # In place: linear and the losses make the gradient of a head for this function alone; without one
        # it is zeros
        add_rows(grad_head, ids.flatten(), grad.flatten(0, 1).to(grad_head.dtype))
        return grad_head, None


# An operator of its own, since the compiler's sum for rows that occur several times is in the order in
# which threads come
@torch.library.custom_op("nanofoundry::add_rows", mutates_args=("table",))
def add_rows(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """table[ids[i]] += rows[i] in an order that is the same in every run: table [V, C], ids [N], rows [N,
    C]."""
    if table.device.type == "cpu":
        table.index_add_(0, ids, rows)
    else:
        table.index_put_((ids,), rows, accumulate=True)  # sorts on CUDA, where index_add_ does not


@add_rows.register_fake
def _(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    return None


class ConfigurableGPT(nn.Module):
    """A decoder-only transformer. Its initial weights are a function of (seed, parameter name) alone."""

    def __init__(self, config: ModelArchitectureConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # shapes first, so that no weight is initialised twice
            self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
            learned = config.position_encoding == "learned"
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd) if learned else None
            self.rope = RoPE(config) if config.position_encoding == "rope" else None
            self.dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            # A post-norm block ends in its own norm
            pre_norm = config.norm_position == "pre"
            self.final_norm = (
                NORMS[config.normalization](config.n_embd, config) if pre_norm else nn.Identity()
            )
            self.lm_head = (
                None if config.weight_tying else Linear(config.n_embd, config.vocab_size, bias=False)
            )
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
        document is by itself: no token sees another's, and positions begin at 0 in each. Raises InputError
        for more positions than block_size."""
        if torch.is_grad_enabled():
            x, head = Embedding.apply(self.token_embedding.weight, input_ids)
        else:  # the weight itself, whose cast autocast keeps
            x, head = self.token_embedding(input_ids), self.token_embedding.weight
        if self.lm_head is not None:
            head = self.lm_head.weight
        x = self.stack(x, document_starts, kv_cache)
        if targets is None:
            return linear(x, head), None
        z_loss = self.config.z_loss if self.training else 0.0
        return None, head_loss(x, head, targets, self.config.loss_backend, z_loss)

    def features(
        self, input_ids: Tensor, document_starts: Tensor | None = None, kv_cache: KVCache | None = None
    ) -> Tensor:
        """What the output head reads, [B, T, C]; the arguments are those of forward."""
        return self.stack(self.token_embedding(input_ids), document_starts, kv_cache)

    def stack(self, x: Tensor, document_starts: Tensor | None, kv_cache: KVCache | None) -> Tensor:
        """All between the token embedding and the output head: x [B, T, C] -> [B, T, C]."""
        assert document_starts is None or kv_cache is None
        B, T, _ = x.shape
        start, mask, positions = 0, None, None
        if document_starts is not None:
            mask = document_mask(document_starts, self.config, self.training)
            positions = torch.arange(T, device=x.device) - document_starts  # [B, T]
        elif kv_cache is not None and kv_cache.positions is not None:
            positions = kv_cache.positions[:, None]  # [B, 1]
        elif kv_cache is not None:
            start = kv_cache.length
        if start + T > self.config.block_size:
            raise InputError(
                f"{start + T} positions exceed block_size={self.config.block_size}: shorten the input"
            )
        if self.position_embedding is not None:
            table = self.position_embedding.weight
            x = x + (table[start : start + T] if positions is None else Embedding.apply(table, positions)[0])
        x = self.dropout(x)
        angles = None
        if self.rope is not None:
            angles = self.rope(start, T) if positions is None else self.rope.at(positions)
        for block in self.blocks:
            x = block(x, angles, kv_cache, mask)
        if kv_cache is not None and positions is None:
            kv_cache.length += T
        return self.final_norm(x)

    def get_num_params(self) -> int:
        """All parameters; tied weights count once."""
        return sum(p.numel() for p in self.parameters())

    def get_num_params_non_embedding(self) -> int:
        """Without token and position embeddings and without the output head: what Qwen's model cards call
        non-embedding."""
        outside = {
            id(self.head_weight): self.head_weight,
            id(self.token_embedding.weight): self.token_embedding.weight,
        }
        if self.position_embedding is not None:
            outside[id(self.position_embedding.weight)] = self.position_embedding.weight
        return self.get_num_params() - sum(p.numel() for p in outside.values())


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
            on_residual = name.endswith(("attention.out.weight", "ffn.down.weight"))
            std = config.init_std / math.sqrt(2 * config.n_layer) if on_residual else config.init_std
            generator = torch.Generator("cpu").manual_seed(name_seed(seed, name))
            assign(p, torch.empty(p.shape, device="cpu").normal_(0.0, std, generator=generator))
    if model.rope is not None:
        model.rope.fill_tables()


def name_seed(seed: int, name: str) -> int:
    """63 bits that belong to this seed and this name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little") >> 1
