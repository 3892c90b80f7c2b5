"""The memory of a computation, counted tensor by tensor as it runs, also of tensors without values (meta)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that come and go within: `live` ones, and their `peak`; not what was there before.

    device: only storages on it, such as "cpu" where others are on "meta".
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._device = device
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._storages((args, kwargs)):
            self._seen.setdefault(storage, True)
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            if storage not in self._seen:
                self._seen[storage] = True
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _storages(self, values: Any) -> Iterator[torch.UntypedStorage]:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and self._device in (None, value.device.type):
                yield value.untyped_storage()

    def _free(self, size: int) -> None:
        self.live -= size


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Attention without a matrix of tokens by tokens, which a GPU never makes: tensors on meta would get one."""
    plain = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        wide = query.dtype == torch.float32
        if attn_mask is not None or wide:
            op = torch.ops.aten._scaled_dot_product_efficient_attention
            bias = None if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask
            return op(query, key, value, bias, compute_log_sumexp=True)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
