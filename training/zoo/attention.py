"""Heads with attention: over one token, as the notebook did, and over the feature map, as its name says."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.data.labels import LABELS
from training.zoo.dense import two_dense_layers
from training.zoo.heads import Head, OwnGradient, keras_linear

_HEADS: Final = 4


class MultiHeadAttention(nn.Module):
    """Self-attention (Vaswani et al. 2017, arXiv:1706.03762) with the key size chosen freely, as in Keras.

    Args:
        width: Of a token.
        key: Size of a key, query and value, by head.
        dropout: Of the attention weights.
        heads: Number of heads.
    """

    def __init__(self, width: int, key: int, dropout: float, heads: int = _HEADS) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (keras_linear(width, heads * key) for _ in range(3))
        self.output = keras_linear(heads * key, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend among tokens of shape ``(batch, tokens, width)``; the shape stays."""
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        mixed: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return mixed


class OneTokenAttention(OwnGradient):
    """Attention of one vector to itself, as published: its only weight is always 1.

    Args:
        width: Of the vector.
        dropout: Of the one attention weight of each head.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, key=width, dropout=dropout)

    def forward(self, vector: Tensor) -> Tensor:
        """Attend; vectors of shape ``(batch, width)``."""
        if self.training:
            mixed: Tensor = self.attention(vector[:, None])[:, 0]
            return mixed
        # What queries and keys say does not matter: the softmax of one number is 1.
        plain: Tensor = self.attention.output(self.attention.value(vector))
        return plain

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Carry a gradient back through the two linear layers that are left."""
        return gradient @ self.attention.output.weight @ self.attention.value.weight


class OneTokenHead(Head):
    """The attention notebook's head, as published: average pooling, attention over one token, dense layers.

    Its queries and keys have 13 million weights that nothing can be learnt by.

    Args:
        channels: Of the feature map.
        dropout: Of every dropout; None takes the published ones (.3 attention, .5, .3).
    """

    idle = frozenset(f"attend.attention.{layer}.{kind}" for layer in ("query", "key") for kind in ("weight", "bias"))

    def __init__(self, channels: int, dropout: float | None = None) -> None:
        super().__init__()
        first, second, third = (0.3, 0.5, 0.3) if dropout is None else (dropout,) * 3
        self.attend = OneTokenAttention(channels, first)
        self.dense = two_dense_layers(channels, (second, third))
        self.logits = keras_linear(128, len(LABELS))

    def layers(self) -> tuple[nn.Module, ...]:
        """Return attention and the parts of the dense layers."""
        return self.attend, *self.dense

    def pool(self, features: Tensor) -> Tensor:
        """Take each channel's mean."""
        return features.mean(dim=(2, 3))


class SpatialHead(Head):
    """Attention over the places of the feature map, then average pooling and the notebook's dense layers.

    Each place is a token: projected, given its position, and attended to with a residual and a layer
    norm before it (Xiong et al. 2020, arXiv:2002.04745) and after. Evidence is of the tokens.

    Args:
        channels: Of the feature map.
        side: Of the feature map, in places.
        width: Of a token.
        dropout: Of every dropout; None takes the published ones (.3 attention, .5, .3).
    """

    learns_after_pooling = False

    def __init__(self, channels: int, side: int, width: int = 256, dropout: float | None = None) -> None:
        super().__init__()
        first, second, third = (0.3, 0.5, 0.3) if dropout is None else (dropout,) * 3
        self.side = side
        self.project = keras_linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, side * side, width))
        self.norm_before = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, key=width // _HEADS, dropout=first)
        self.norm_after = nn.LayerNorm(width)
        self.dense = two_dense_layers(width, (second, third))
        self.logits = keras_linear(128, len(LABELS))

    def layers(self) -> tuple[nn.Module, ...]:
        """Return the parts of the dense layers."""
        return tuple(self.dense)

    def refine(self, features: Tensor) -> Tensor:
        """Let the places attend to each other: ``(batch, channels, h, w)`` to ``(batch, width, h, w)``."""
        tokens = self.project(features.flatten(2).transpose(1, 2)) + self.position
        tokens = self.norm_after(tokens + self.attention(self.norm_before(tokens)))
        refined: Tensor = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        return refined

    def pool(self, features: Tensor) -> Tensor:
        """Take the mean over all places."""
        return features.mean(dim=(2, 3))
