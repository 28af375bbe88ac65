"""``nn.MultiheadAttention`` without some of its heads.

Torch's own divides the width of its inputs among the heads: with fewer heads, or with narrower inputs,
each head would have another width. ``NarrowAttention`` takes the same tensors, and as many heads of the
width that they have.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose heads, side by side, may be as wide as they like.

    Tensors and their names, arguments and results are those of ``nn.MultiheadAttention``; only
    ``embed_dim``, the width of the queries, is no multiple of ``num_heads``. Made of one by
    ``free_heads_``, never called.
    """

    num_heads: int
    head_dim: int

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Where it is true, ``nn.TransformerEncoderLayer`` passes the tensors to a kernel of its own."""
        return False

    def _reset_parameters(self) -> None:
        """Draw all tensors anew, as torch does: it asks the property above which there are."""
        whole = _optional(self, "in_proj_weight")
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        for weight in separate if whole is None else (whole,):
            nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)
        for learned in (self.bias_k, self.bias_v):
            if learned is not None:
                nn.init.xavier_normal_(learned)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as ``nn.MultiheadAttention`` does.

        Args:
            query: ``[batch, queries, width]``; batch second unless ``batch_first``, or no batch.
            key: ``[batch, keys, its width]``.
            value: ``[batch, keys, its width]``.
            key_padding_mask: ``[batch, keys]``: True, or what is added to the scores.
            need_weights: Return them, too.
            attn_mask: ``[queries, keys]`` or ``[batch * heads, queries, keys]``.
            average_attn_weights: Return their mean over the heads.
            is_causal: That ``attn_mask`` is the causal one.

        Returns:
            Like the queries; the weights ``[batch, queries, keys]``, by head ``[batch, heads, queries,
            keys]``, or None.

        Raises:
            RuntimeError: ``is_causal`` without a mask, or a mask of another shape.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is set without attn_mask: give the causal mask")
        batched = query.dim() == 3
        if not batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        packed = query is key and key is value
        query, key, value = (self._batch_first(t, batched=batched) for t in (query, key, value))
        q, k, v = self._projected(query, key, value, packed=packed)
        # A kernel of its own for causal masks, where nothing else has to be added.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(attn_mask, key_padding_mask, q)
        k, v, mask = self._extended(k, v, mask)
        q, k, v = (
            t.view(*t.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v)
        )
        rate, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = functional.dropout(weights, rate)
            found = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            found = functional.scaled_dot_product_attention(q, k, v, mask, rate, causal)
        layer = self.out_proj  # not called, as in torch: it is no layer that may be replaced
        out = functional.linear(found.transpose(1, 2).flatten(2), layer.weight, layer.bias)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batch_first(self, tensor: Tensor, *, batched: bool) -> Tensor:
        if not batched:
            return tensor.unsqueeze(0)
        return tensor if self.batch_first else tensor.transpose(0, 1)

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, *, packed: bool
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values of all heads, ``[batch, length, heads * head width]`` each."""
        whole, bias = _optional(self, "in_proj_weight"), _optional(self, "in_proj_bias")
        if packed and whole is not None:
            return functional.linear(query, whole, bias).chunk(3, dim=-1)
        weights = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if whole is None
            else whole.chunk(3)
        )
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        given = zip((query, key, value), weights, biases, strict=True)
        return tuple(functional.linear(x, weight, bias) for x, weight, bias in given)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor
    ) -> Tensor | None:
        """Both masks as what is added to scores ``[batch, heads, queries, keys]``."""
        masks = []
        if attn_mask is not None:
            rows = _added(attn_mask, q.dtype)
            if rows.dim() == 3:
                rows = rows.view(q.shape[0], self.num_heads, *rows.shape[1:])
            masks.append(rows)
        if key_padding_mask is not None:
            masks.append(_added(key_padding_mask, q.dtype)[:, None, None])
        return sum(masks[1:], masks[0]) if masks else None

    def _extended(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """With a learned key and value, and one of zeros, behind the others, which no mask hides."""
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([t, more.expand(t.shape[0], -1, -1)], dim=1)
                for t, more in ((k, self.bias_k), (v, self.bias_v))
            )
            mask = None if mask is None else functional.pad(mask, (0, 1))
        if self.add_zero_attn:
            k, v = (functional.pad(t, (0, 0, 0, 1)) for t in (k, v))
            mask = None if mask is None else functional.pad(mask, (0, 1))
        return k, v, mask


def _optional(module: nn.MultiheadAttention, name: str) -> Tensor | None:
    """A tensor that only some have; its declared type does not say so."""
    found: Tensor | None = getattr(module, name)
    return found


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to scores: minus infinity where it is True."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def free_heads_(network: nn.Module, *, where_needed: bool = False) -> None:
    """Make ``nn.MultiheadAttention`` of a network ``NarrowAttention``, in place; subclasses stay.

    Args:
        network: Computes what it did.
        where_needed: Only those that torch's own forward cannot run.
    """
    for module in network.modules():
        if type(module) is nn.MultiheadAttention and not (where_needed and _fills_width(module)):
            module.__class__ = NarrowAttention


def sync_heads_(module: nn.MultiheadAttention) -> None:
    """Sizes that it keeps beside its tensors, after ``num_heads`` was set."""
    whole = _optional(module, "in_proj_weight")
    if whole is not None:
        module.embed_dim = module.kdim = module.vdim = whole.shape[1]
    else:
        module.embed_dim = module.q_proj_weight.shape[1]
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
    module.head_dim = module.out_proj.weight.shape[1] // module.num_heads


def _fills_width(module: nn.MultiheadAttention) -> bool:
    """Whether the heads, side by side, are as wide as the inputs and the outputs."""
    width = module.embed_dim
    return (
        module.out_proj.weight.shape
        == (width, width)
        == (width, module.num_heads * module.head_dim)
    )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep ``torch.nn`` from its fused kernels inside: one operation would hide all products."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
