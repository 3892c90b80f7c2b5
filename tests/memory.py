"""Torch's own accounting of memory, which plans are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dar.tape import Entry, TorchTape


def saved_bytes(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Of all that is held after `forward` for the backward pass, by autograd or on a tape of readers.

    Each storage once, parameters not counted.
    """
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage
        return tensor

    with pytest.MonkeyPatch.context() as patch, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _show_tapes(patch, pack)
        loss = forward()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def _show_tapes(patch: pytest.MonkeyPatch, pack: Callable[[Tensor], Tensor]) -> None:
    """Show `pack` what a `TorchTape` holds, which no hook of autograd sees."""
    enter, read = TorchTape.enter, TorchTape.read

    def shown_enter(tape: TorchTape, value: Tensor, readers: range) -> Entry:
        entry = enter(tape, value, readers)
        for tensor in (tape.queries, entry.value, entry.inv_rms, entry.logits[0]):
            pack(tensor)
        return entry

    def shown_read(tape: TorchTape, reader: int, entries: Sequence[Entry], *given: object) -> tuple[Tensor, ...]:
        result = read(tape, reader, entries, *given)  # type: ignore[arg-type]
        pack(tape.weights(reader))
        return result

    patch.setattr(TorchTape, "enter", shown_enter)
    patch.setattr(TorchTape, "read", shown_read)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What scaled_dot_product_attention chooses on a GPU in low precision; it cannot tell where there is none."""
    q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


@contextmanager
def cuda_autocast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA's rules of autocast to bf16 on tensors that have a shape and a device but no values and no memory."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", _flash)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


def on_cuda(model: nn.Module) -> dict[str, Tensor]:
    """Stand-ins of a model's parameters on a GPU, under `cuda_autocast`."""
    return {
        name: torch.empty(parameter.shape, device="cuda").requires_grad_(parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
