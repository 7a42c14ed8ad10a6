"""Llama-architecture model of the demo, with rotary pairs (2i, 2i+1) as GGUF's llama expects."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokens import VOCAB
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the model."""

    vocab: int = VOCAB
    layers: int = 4
    width: int = 256
    heads: int = 4
    ffn: int = 512
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5


def rope_tables(cfg: Config) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of shape (context, head_dim / 2)."""
    dim = cfg.width // cfg.heads
    freq = cfg.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(cfg.context, dtype=torch.float64), freq)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the last dimension of ``x`` (batch, time, heads, dim)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """One pre-norm layer: causal attention and a SwiGLU feed-forward net."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.attn_norm = nn.RMSNorm(cfg.width, eps=cfg.eps)
        self.ffn_norm = nn.RMSNorm(cfg.width, eps=cfg.eps)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (
            nn.Linear(cfg.width, cfg.width, bias=False) for _ in range(4)
        )
        self.ffn_gate = nn.Linear(cfg.width, cfg.ffn, bias=False)
        self.ffn_up = nn.Linear(cfg.width, cfg.ffn, bias=False)
        self.ffn_down = nn.Linear(cfg.ffn, cfg.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Apply attention and its residual connection to (batch, time, width)."""
        shape = (x.shape[0], x.shape[1], self.heads, -1)
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(shape), cos, sin).transpose(1, 2)
        k = rotate(self.attn_k(h).view(shape), cos, sin).transpose(1, 2)
        v = self.attn_v(h).view(shape).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return x + self.attn_output(y.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """Apply the feed-forward net and its residual connection."""
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(nn.Module):
    """Decoder with untied output; parameter names follow GGUF's tensor names."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.token_embd = nn.Embedding(cfg.vocab, cfg.width)
        self.blk = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.output_norm = nn.RMSNorm(cfg.width, eps=cfg.eps)
        self.output = nn.Linear(cfg.width, cfg.vocab, bias=False)
        cos, sin = rope_tables(cfg)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, param in self.named_parameters():
            if param.ndim == 2:
                scale = (2 * cfg.layers) ** -0.5 if "down" in name or "attn_output" in name else 1.0
                nn.init.normal_(
                    param, std=scale * (0.02 if name[0] == "o" else param.shape[1] ** -0.5)
                )
        nn.init.normal_(self.token_embd.weight, std=0.5)

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the states of (batch, time) ids before the last feed-forward net.

        ``mask`` (batch, 1, time, time) is true where a position may look; without it, backwards.
        """
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.token_embd(ids)
        for block in self.blk[:-1]:
            x = block.feed(block(x, cos, sin, mask))
        return self.blk[-1](x, cos, sin, mask)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of states given by ``hidden``, of any leading shape."""
        return self.output(self.output_norm(self.blk[-1].feed(x)))

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits for every position."""
        return self.logits(self.hidden(ids))
