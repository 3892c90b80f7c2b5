"""Prompts encoded once, by the text encoders of a diffusers pipeline: what `distill.conditions.Prompts` reads."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.conditions import Prompts, begin_prompts, finish_prompts, write_prompt
from distill.conditions.prompt_files import NULL, is_finite, shortened
from distill.errors import UserError
from distill.files import locked

BATCH = 8
LOCAL = {"local_files_only": True}


@dataclass(frozen=True)
class Told:
    """Which of the transformer's arguments the outputs of a pipeline's `encode_prompt` are, by their place.

    Text ids are left out: they follow from the length, and are the same for every prompt.
    null: where a pipeline encodes a negative prompt in another way, the places of what it gives for that.
    """

    prompt: Mapping[str, int]
    null: Mapping[str, int] = field(default_factory=dict)


EMBEDDING, MASK, POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
TOLD = {
    "Flux2KleinPipeline": Told({EMBEDDING: 0}),
    "Flux2Pipeline": Told({EMBEDDING: 0}),
    "FluxPipeline": Told({EMBEDDING: 0, POOLED: 1}),
    "LTXPipeline": Told({EMBEDDING: 0, MASK: 1}),
    "Lumina2Pipeline": Told({EMBEDDING: 0, MASK: 1}, null={EMBEDDING: 2, MASK: 3}),
    "PixArtAlphaPipeline": Told({EMBEDDING: 0, MASK: 1}),
    "PixArtSigmaPipeline": Told({EMBEDDING: 0, MASK: 1}),
    "QwenImagePipeline": Told({EMBEDDING: 0, "encoder_hidden_states_mask": 1}),
    "StableDiffusion3Pipeline": Told({EMBEDDING: 0, POOLED: 2}),
    "WanPipeline": Told({EMBEDDING: 0}),
}


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line, without blank lines and those that begin with #; of a .jsonl file the
    field `prompt` of each line. One that comes again is left out.

    Raises: UserError, which names the file and the line.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8: {error}") from error
    if file.suffix == ".jsonl":
        read = [_field(file, number, line) for number, line in enumerate(lines, 1) if line]
    else:
        read = [line for line in lines if line and not line.startswith("#")]
    if not read:
        raise UserError(f"{file} holds no prompts")
    return list(dict.fromkeys(read))


def _field(file: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"].strip()
        prompt.encode()  # half of a surrogate pair cannot be written
    except (ValueError, TypeError, KeyError, AttributeError):
        prompt = ""
    if not prompt:
        raise UserError(f'{file}, line {number}: expected {{"prompt": "some text"}}; got {shortened(line)}')
    return prompt


class TextEncoders:
    """The text encoders of a pipeline, without its transformer and autoencoder.

    Weights are read for the first prompt. On an accelerator the encoders take turns: each is moved there when it is
    called, and off again when the next one is.

    Args:
        model: the pipeline's folder, or its hub name in the local cache; nothing is downloaded. max_length: tokens of a
            prompt at most, the rest is cut off; None for what the pipeline does by itself.

    Raises: UserError where there is no such pipeline, it lacks an encoder, or its class is not in `TOLD`.
    """

    def __init__(
        self, model: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, max_length: int | None = None
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        index = _from_libraries(model, lambda diffusers, _: diffusers.DiffusionPipeline.load_config(model, **LOCAL))
        self.name = index.get("_class_name")
        if self.name not in TOLD:
            raise UserError(f"{model} is of {self.name}; prompts are encoded by {', '.join(TOLD)}")
        parts = {part: kind[1] for part, kind in index.items() if isinstance(kind, (list, tuple))}
        self._encoders = {part: kind for part, kind in parts.items() if part.startswith("text_encoder")}
        self._others = [part for part in parts if not part.startswith(("text_encoder", "tokenizer"))]
        absent = [part for part in parts if part not in self._others and parts[part] is None]
        if absent:
            raise UserError(f"{model} has no {absent[0]}; all of its encoders are needed")
        self.max_length = self._usual_length() if max_length is None else max_length

    @property
    def made_by(self) -> dict[str, Any]:
        """What embeddings depend on beside the text."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"model": self.model, "pipeline": self.name, "dtype": dtype, "max_length": self.max_length}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """What the transformer is told of each prompt, on the CPU, without the padding that a mask tells from it.

        Raises: UserError where the weights cannot be read.
        """
        return _rows(self._call(list(prompts)), TOLD[self.name].prompt)

    def encode_null(self, text: str) -> dict[str, Tensor]:
        """The same for the null prompt."""
        negative = TOLD[self.name].null
        return _rows(self._call([""], negative=text), negative)[0] if negative else self.encode([text])[0]

    def _call(self, prompts: list[str], negative: str | None = None) -> Sequence[Tensor | None]:
        arguments = {
            "prompt_2": None,
            "prompt_3": None,
            "negative_prompt": negative,
            "do_classifier_free_guidance": negative is not None,
        }
        encode = self._pipeline.encode_prompt
        taken = {name: value for name, value in arguments.items() if name in inspect.signature(encode).parameters}
        with torch.no_grad():
            return encode(prompt=prompts, device=self.device, max_sequence_length=self.max_length, **taken)

    @cached_property
    def _pipeline(self) -> Any:
        encoders = {part: self._encoder(part, kind) for part, kind in self._encoders.items()}
        parts = encoders | dict.fromkeys(self._others)
        pipeline = _from_libraries(
            self.model, lambda diffusers, _: diffusers.DiffusionPipeline.from_pretrained(self.model, **parts, **LOCAL)
        )
        pipeline.enable_model_cpu_offload(device=self.device)
        return pipeline

    def _encoder(self, part: str, kind: str) -> Any:
        def load(_: Any, transformers: Any) -> Any:
            return getattr(transformers, kind).from_pretrained(
                self.model,
                subfolder=part,
                dtype=self.dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **LOCAL,
            )

        encoder, found = _from_libraries(f"{self.model}/{part}", load)
        # transformers initialises such weights with random numbers.
        wrong = [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]
        if wrong:
            raise UserError(
                f"{self.model}/{part} lacks {sorted(wrong)[0]}, or it has not the shape that its config says"
            )
        return encoder

    def _usual_length(self) -> int:
        """What stands in the pipeline's call; `encode_prompt` has other defaults."""
        call = _from_libraries(self.model, lambda diffusers, _: getattr(diffusers, self.name).__call__)
        return inspect.signature(call).parameters["max_sequence_length"].default


def encode_prompts(
    prompts: Sequence[str],
    encoders: TextEncoders,
    folder: Path,
    *,
    null: str = "",
    batch_size: int = BATCH,
    advance: Callable[[int], object] = lambda _: None,
) -> Prompts:
    """Encode prompts into `folder`; those that are there already are left as they are.

    Args:
        null: text of the null prompt.
        advance: called with the number of prompts that are there, of which the null prompt is one, and after each batch
            with its number.

    Raises: UserError as `TextEncoders.encode`; where the folder holds anything else; where an embedding is not finite.
    """
    with locked(folder):
        _encode_missing(prompts, encoders, folder, null, batch_size, advance)
        finish_prompts(folder)
    return Prompts.load(folder)


def _encode_missing(
    prompts: Sequence[str],
    encoders: TextEncoders,
    folder: Path,
    null: str,
    batch_size: int,
    advance: Callable[[int], object],
) -> None:
    missing = begin_prompts(folder, encoders.made_by, prompts, null)
    advance(len(prompts) + 1 - len(missing))
    if NULL in missing:
        _write(folder, NULL, null, encoders.encode_null(null))
        advance(1)
    missing = [number for number in missing if number != NULL]
    for numbers in (missing[first : first + batch_size] for first in range(0, len(missing), batch_size)):
        told = encoders.encode([prompts[number] for number in numbers])
        for number, tensors in zip(numbers, told, strict=True):
            _write(folder, number, prompts[number], tensors)
        advance(len(numbers))


def _write(folder: Path, number: int, text: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            hint = "; bfloat16 and float32 have the wider range" if tensor.dtype == torch.float16 else ""
            raise UserError(f"prompt {shortened(text)!r}: {name} is not finite in {tensor.dtype}{hint}")
    write_prompt(folder, number, tensors)


def _rows(outputs: Sequence[Tensor | None], places: Mapping[str, int]) -> list[dict[str, Tensor]]:
    """The outputs by name, prompt by prompt."""
    found = {name: outputs[place] for name, place in places.items()}
    embedding = found[EMBEDDING]
    assert embedding is not None
    # A pipeline says by None that no place is padding.
    nothing = torch.ones(embedding.shape[:2], dtype=torch.int64)
    whole = {name: nothing if tensor is None else tensor.cpu() for name, tensor in found.items()}
    return [_unpadded({name: tensor[i] for name, tensor in whole.items()}) for i in range(len(embedding))]


def _unpadded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what lies behind the last place of a mask."""
    masks = [name for name in tensors if name.endswith("mask")]
    if not masks:
        return tensors
    length = int(tensors[masks[0]].nonzero().max()) + 1
    return {name: tensor[:length] if name in (EMBEDDING, *masks) else tensor for name, tensor in tensors.items()}


def _from_libraries(what: str, call: Callable[[Any, Any], Any]) -> Any:
    """call(diffusers, transformers), which read `what`. Raises: UserError where they are not there, or cannot."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise UserError("text encoders need diffusers and transformers: pip install 'dar-distill[text]'") from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        return call(diffusers, transformers)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        if isinstance(error, OSError) and not Path(what).exists():
            raise UserError(
                f"{what} is neither a folder nor in the hub's cache; `hf download NAME` gets a pipeline there"
            ) from error
        raise UserError(f"{what} cannot be read: {' '.join(str(error).split())}") from error
