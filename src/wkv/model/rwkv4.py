"""RWKV-4, from token ids to logits, in one file to read top to bottom.

Shapes: B sequences of T tokens, D hidden, A attention and F feed-forward channels, V vocabulary,
L layers. Module names are those of the hub's ``RWKV/rwkv-4-*`` checkpoints.

Every layer sees the past through two things only: the previous token's activations (token shift)
and the wkv recurrence. Both are fixed-size, together they are the :class:`~wkv.state.State`; so a
sequence can be run at once, in chunks, or token by token, with the same result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..config import ModelConfig
from ..errors import ShapeError
from ..ops import wkv
from ..state import State
from .init import init_attention, init_embedding, init_feed_forward, init_head


class Past(NamedTuple):
    """What one layer remembers: [B, D], [B, D] and three times [B, A]."""

    att_x: torch.Tensor
    ffn_x: torch.Tensor
    num: torch.Tensor
    den: torch.Tensor
    max: torch.Tensor


class Packing(NamedTuple):
    """Where N sequences lie when packed into one row of T tokens (B = 1)."""

    starts: torch.Tensor  # [N+1] cumulative offsets
    rows: torch.Tensor  # [M] the sequences that are not empty
    heads: torch.Tensor  # [M] their first positions
    tails: torch.Tensor  # [M] their last positions

    @classmethod
    def of(cls, starts: torch.Tensor) -> Packing:
        """From cumulative offsets, as in :func:`wkv.ops.wkv`."""
        rows = torch.nonzero(starts[1:] > starts[:-1]).squeeze(1)
        return cls(starts, rows, starts[:-1][rows], starts[1:][rows] - 1)


def token_shift(
    x: torch.Tensor, last: torch.Tensor, packing: Packing | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's predecessor [B, T, D], and the last token of each sequence [B, D]."""
    last = last.to(x.dtype)
    if x.shape[1] == 0:
        return x, last
    if packing is None:
        return torch.cat([last[:, None], x[:, :-1]], 1), x[:, -1]
    previous = F.pad(x, (0, 0, 1, -1)).index_copy(1, packing.heads, last[packing.rows][None])
    return previous, last.index_copy(0, packing.rows, x[0, packing.tails])


class Attention(nn.Module):
    """Time mixing: a gated, exponentially decaying average of the values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, a = config.hidden_size, config.attention_size
        self.layer, self.num_layers = layer, config.num_hidden_layers
        self.time_decay = nn.Parameter(torch.empty(a))
        self.time_first = nn.Parameter(torch.empty(a))
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, d))
        self.time_mix_value = nn.Parameter(torch.empty(1, 1, d))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, d))
        self.key = nn.Linear(d, a, bias=False)
        self.value = nn.Linear(d, a, bias=False)
        self.receptance = nn.Linear(d, a, bias=False)
        self.output = nn.Linear(a, d, bias=False)
        init_attention(self)

    def forward(
        self,
        x: torch.Tensor,
        past: Past,
        packing: Packing | None,
        implementation: str,
        scale: float = 1.0,
    ) -> tuple[torch.Tensor, Past]:
        """x [B, T, D] → ``scale`` times the output [B, T, D], and what to remember."""
        previous, last = token_shift(x, past.att_x, packing)
        step = x - previous
        k = self.key(_mix(previous, step, self.time_mix_key))  # [B, T, A]
        v = self.value(_mix(previous, step, self.time_mix_value))  # [B, T, A]
        r = self.receptance(_mix(previous, step, self.time_mix_receptance))  # [B, T, A]
        y, (num, den, top) = wkv(
            k,
            v,
            -torch.exp(self.time_decay.float()),
            self.time_first.float(),
            (past.num, past.den, past.max),
            starts=packing.starts if packing else None,
            implementation=implementation,
        )
        y = torch.sigmoid(r) * y
        out = self.output(y if scale == 1.0 else y * scale)  # [B, T, D]
        return out, past._replace(att_x=last, num=num, den=den, max=top)


class FeedForward(nn.Module):
    """Channel mixing: a gated two-layer perceptron with squared ReLU."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, f = config.hidden_size, config.ffn_size
        self.layer, self.num_layers = layer, config.num_hidden_layers
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, d))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, d))
        self.key = nn.Linear(d, f, bias=False)
        self.receptance = nn.Linear(d, d, bias=False)
        self.value = nn.Linear(f, d, bias=False)
        init_feed_forward(self)

    def forward(
        self, x: torch.Tensor, past: Past, packing: Packing | None, scale: float = 1.0
    ) -> tuple[torch.Tensor, Past]:
        """x [B, T, D] → ``scale`` times the output [B, T, D], and what to remember."""
        previous, last = token_shift(x, past.ffn_x, packing)
        step = x - previous
        k = self.key(_mix(previous, step, self.time_mix_key))  # [B, T, F]
        r = torch.sigmoid(self.receptance(_mix(previous, step, self.time_mix_receptance)))
        if k.dtype != torch.float16:
            return r * self.value(_SquaredReLU.apply(k)), past._replace(ffn_x=last)
        k = torch.relu(k)
        # A square leaves float16 at 256. Powers of two, chosen per token, keep it exact and small.
        size = torch.exp2(torch.ceil(torch.log2(k.amax(-1, keepdim=True).clamp(min=16) / 16)))
        out = r * self.value((k / size).square() * scale).float() * size.float().square()
        return out, past._replace(ffn_x=last)


class Block(nn.Module):
    """One layer: x + attention(ln1(x)), then x + feed_forward(ln2(x)); ln0 before the first."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.layer_norm_epsilon
        if layer == 0:
            self.pre_ln = nn.LayerNorm(d, eps=eps)
        self.ln1 = nn.LayerNorm(d, eps=eps)
        self.ln2 = nn.LayerNorm(d, eps=eps)
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config, layer)
        self.layer, self.rescale_every = layer, config.rescale_every

    def forward(
        self, x: torch.Tensor, past: Past, packing: Packing | None, implementation: str
    ) -> tuple[torch.Tensor, Past]:
        """x [B, T, D] → [B, T, D] and what to remember."""
        if self.layer == 0:
            x = self.pre_ln(x)
        # float16 overflows in deep models. Halving the residual stream every few blocks changes
        # nothing after the next LayerNorm, so it is done to the activations, never to a weight.
        rescale = self.rescale_every if x.dtype == torch.float16 else 0
        scale = 2.0 ** -(self.layer // rescale) if rescale else 1.0
        out, past = self.attention(self.ln1(x), past, packing, implementation, scale)
        x = x + out.to(x.dtype)
        out, past = self.feed_forward(self.ln2(x), past, packing, scale)
        x = x + out.to(x.dtype)
        if rescale and (self.layer + 1) % rescale == 0:
            x = x / 2
        return x, past


class Backbone(nn.Module):
    """Embedding, blocks and the final LayerNorm: token ids to hidden vectors."""

    gradient_checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.build(config)

    def build(self, config: ModelConfig) -> None:
        """Create the modules (apart, so that a class with another base can share them)."""
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        init_embedding(self.embeddings)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)

    def run(
        self,
        x: torch.Tensor,
        state: State | None = None,
        *,
        starts: torch.Tensor | None = None,
        implementation: str = "auto",
        hidden_states: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, State]:
        """Run embedded tokens through every block.

        Args:
            x: embedded tokens [B, T, D].
            state: where to go on from (torch tensors), never changed; None is the empty state.
            starts: offsets [N+1] of sequences packed along T, with B = 1 and a state of N rows.
            implementation: of the wkv operator.
            hidden_states: a list to which each block's input is appended.

        Returns:
            Hidden vectors after ``ln_out`` [B, T, D], and the new state.
        """
        rows = x.shape[0] if starts is None else starts.numel() - 1
        packing = None if starts is None else Packing.of(starts)
        pasts = self._pasts(state, rows, x)
        new: list[Past] = []
        device = x.device
        for block, past in zip(self.blocks, pasts):
            if hidden_states is not None:
                hidden_states.append(x)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x, past = torch.utils.checkpoint.checkpoint(
                    block, x, past, packing, implementation, use_reentrant=False
                )
            else:
                x, past = block(x, past, packing, implementation)
            new.append(past)
        # Blocks may be spread over devices: the state comes together where the tokens came from.
        fields = {
            name: torch.stack([getattr(p, name).to(device) for p in new], 1)
            for name in Past._fields
        }
        for name in ("att_x", "ffn_x"):
            fields[name] = fields[name].to(fields["num"].dtype)
        fingerprint = state.fingerprint if state is not None else None
        return self.ln_out(x), State(**fields, fingerprint=fingerprint)

    def _pasts(self, state: State | None, rows: int, x: torch.Tensor) -> list[Past]:
        first: Any = self.blocks[0]
        d, a = x.shape[-1], first.attention.time_decay.shape[0]
        if state is None:
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            zero_x = x.new_zeros(rows, d)
            zero = x.new_zeros(rows, a, dtype=wide)
            empty = torch.full_like(zero, -1e38)
            return [Past(zero_x, zero_x, zero, zero, empty)] * len(self.blocks)
        want = (rows, len(self.blocks))
        got = tuple(state.att_x.shape[:2])
        if got != want or state.att_x.shape[2] != d or state.num.shape[2] != a:
            raise ShapeError(
                f"state is {tuple(state.att_x.shape)} with {state.num.shape[2]} attention "
                f"channels: this batch and model need {(*want, d)} with {a}"
            )
        return [
            Past(*(getattr(state, n)[:, i].to(x.device) for n in Past._fields))
            for i in range(len(self.blocks))
        ]


class Rwkv4(nn.Module):
    """The language model: :class:`Backbone` and the output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.rwkv = Backbone(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.head.weight = self.rwkv.embeddings.weight
        else:
            init_head(self.head)

    def forward(
        self,
        tokens: torch.Tensor,
        state: State | None = None,
        *,
        starts: torch.Tensor | None = None,
        implementation: str = "auto",
    ) -> tuple[torch.Tensor, State]:
        """Token ids [B, T] → logits [B, T, V] and the new state. See :meth:`Backbone.run`."""
        x = self.rwkv.embeddings(tokens)  # [B, T, D]
        x, state = self.rwkv.run(x, state, starts=starts, implementation=implementation)
        return self.head(x), state  # [B, T, V]


def _mix(previous: torch.Tensor, step: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    # x·μ + previous·(1 − μ), in one pass over memory, forward and backward.
    return torch.addcmul(previous, step, mix.to(step.dtype))


class _SquaredReLU(torch.autograd.Function):
    """relu(x)². Its gradient, 2·relu(x), is zero where relu's is: one pass back instead of four."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        k = torch.relu(x)
        ctx.save_for_backward(k)
        return k * k

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (k,) = ctx.saved_tensors
        return (grad * k).mul_(2)
