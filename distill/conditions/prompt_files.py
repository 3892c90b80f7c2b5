"""A folder of encoded prompts: its files, and whether they are whole.

    FOLDER/prompts.json         the prompts in order, what the tensors are, and a SHA-256 of each file
    FOLDER/00000.safetensors    prompt 0, the tensors that a model is told by name: an embedding (L, D), a mask (L) that
                                says which of its places are prompt, a pooled vector (P)
    FOLDER/null.safetensors     the null prompt

Written in three steps: `begin_prompts`, `write_prompt` for each, `finish_prompts`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dar.checksums import checksum, checksums
from distill.errors import UserError
from distill.files import new_folder, read_json, write_bytes, write_text

INDEX_FILE = "prompts.json"
NULL = -1  # the number of the null prompt
VERSION = 1
FLOATS = ("F64", "F32", "F16", "BF16")
MASKS = ("BOOL", "I64")
INDEX = "index"  # of batches: which prompt a row is
HOW = "scripts/encode_prompts.py makes one"


@dataclass(frozen=True)
class Kind:
    """What a tensor is: an embedding ["L", D], a mask ["L"] or a vector [P]. dtype: as safetensors calls it."""

    dtype: str
    shape: tuple[int | str, ...]

    @property
    def has_length(self) -> bool:
        return self.shape[:1] == ("L",)

    @property
    def is_mask(self) -> bool:
        return self.shape == ("L",)


@dataclass(frozen=True)
class PromptIndex:
    """What `prompts.json` says.

    made_by: what the embeddings depend on beside the text, such as the model. null: text of the null prompt.
    length: L of the longest prompt, the null prompt among them. tensors: what each is. sha256: of each file, by name.
    The last three are empty until the folder is whole.
    """

    made_by: dict[str, Any]
    null: str
    prompts: tuple[str, ...]
    length: int = 0
    tensors: dict[str, Kind] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> range:
        """Of all prompts, the null prompt first."""
        return range(NULL, len(self.prompts))

    def digest(self) -> str:
        """A hash of the texts and of the files: equal folders make equal batches."""
        content = [self.prompts, self.null, sorted(self.sha256.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def prompt_file(folder: Path, number: int) -> Path:
    return folder / f"{'null' if number == NULL else f'{number:05d}'}.safetensors"


def begin_prompts(folder: Path, made_by: Mapping[str, Any], prompts: Sequence[str], null: str = "") -> list[int]:
    """Claim a folder for prompts, or go on with one: its list may have become longer.

    Returns: numbers of the prompts that are missing, `NULL` among them.
    Raises: UserError where the folder holds anything else: it names what differs.
    """
    index = PromptIndex(dict(made_by), null, tuple(prompts))
    if not prompts:
        raise UserError("there are no prompts to encode")
    begun = None
    if (folder / INDEX_FILE).is_file():
        begun = read_index(folder)
        _check_same(folder, begun, index)
    else:
        new_folder(folder, "the folder of prompts")
    if begun is None or begun.prompts != index.prompts:
        _write_index(folder, index)
    return [number for number in index.numbers if not prompt_file(folder, number).is_file()]


def write_prompt(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> None:
    """Write one prompt, whole or not at all."""
    write_bytes(prompt_file(folder, number), save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def finish_prompts(folder: Path) -> None:
    """Note in `prompts.json` what the files hold, when all are there. Raises: UserError where one is damaged."""
    begun = read_index(folder)
    headers = {number: _header(prompt_file(folder, number)) for number in begun.numbers}
    tensors = {name: _kind(dtype, shape) for name, (dtype, shape) in headers[0].items()}
    shapes = [(name, shape) for header in headers.values() for name, (_, shape) in header.items() if shape]
    length = max((shape[0] for name, shape in shapes if name in tensors and tensors[name].has_length), default=0)
    sha256 = checksums(folder, [prompt_file(folder, number).name for number in begun.numbers])
    _write_index(folder, PromptIndex(begun.made_by, begun.null, begun.prompts, length, tensors, sha256))


def read_index(folder: Path) -> PromptIndex:
    """Raises: UserError where the folder or its `prompts.json` is missing or damaged; it names the field."""
    file = folder / INDEX_FILE
    if not folder.is_dir():
        raise UserError(f"there is no folder of prompts {folder}; {HOW}")
    if not file.is_file():
        raise UserError(f"{folder} holds no prompts (no {INDEX_FILE}); {HOW}")
    read = read_json(file)
    if read.get("version") != VERSION:
        raise UserError(f"{file} is of version {read.get('version')}; this one reads {VERSION}")
    prompts, null, length, sha256 = (read.get(name) for name in ("prompts", "null", "length", "sha256"))
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise UserError(f"{file}: prompts must be a list of at least one text")
    if not isinstance(null, str):
        raise UserError(f"{file}: null must be the text of the null prompt; got {null!r}")
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise UserError(f"{file}: length must be a whole number from 0; got {length!r}")
    if not isinstance(sha256, dict) or not isinstance(read.get("made_by"), dict):
        raise UserError(f"{file}: made_by and sha256 must be mappings")
    return PromptIndex(read["made_by"], null, tuple(prompts), length, _read_tensors(file, read.get("tensors")), sha256)


def _read_tensors(file: Path, tensors: Any) -> dict[str, Kind]:
    try:
        kinds = {name: Kind(kind["dtype"], tuple(kind["shape"])) for name, kind in tensors.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: tensors must give dtype and shape of each by name; got {tensors!r}") from error
    for name, kind in kinds.items():
        if name == INDEX:
            raise UserError(f"{file}: a tensor must not be called {INDEX}, which says what prompt a row is")
        sizes = kind.shape[1:] if kind.shape[:1] == ("L",) else kind.shape
        if not kind.shape or len(sizes) > 1 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise UserError(f'{file}: the shape of {name} must be ["L", D], ["L"] or [P]; got {list(kind.shape)}')
        allowed = MASKS if kind.is_mask else FLOATS
        if kind.dtype not in allowed:
            what = "a mask" if kind.is_mask else "an embedding"
            raise UserError(f"{file}: {name} is {what} of {kind.dtype}; it must be of {', '.join(allowed)}")
    return kinds


def check_files(folder: Path, index: PromptIndex) -> None:
    """See from their headers that all files are there and are what `prompts.json` says. Raises: UserError."""
    file = folder / INDEX_FILE
    if not index.sha256 or not index.tensors:
        raise UserError(f"{folder} is not whole: go on with the command that makes it")
    is_masked = any(kind.is_mask for kind in index.tensors.values())
    for number in index.numbers:
        path = prompt_file(folder, number)
        if path.name not in index.sha256:
            raise UserError(f"{file}: sha256 lacks {path.name}")
        if not path.is_file():
            which = "the null prompt" if number == NULL else f"prompt {number}"
            raise UserError(f"{folder} lacks {which}: there is no {path.name}")
        _check_header(path, _header(path), index, is_masked)


def _check_header(path: Path, header: dict[str, Any], index: PromptIndex, is_masked: bool) -> None:
    if header.keys() != index.tensors.keys():
        name = sorted(header.keys() ^ index.tensors.keys())[0]
        raise UserError(f"{path} {'holds' if name in header else 'has no'} {name}, unlike the others")
    lengths = {}
    for name, kind in index.tensors.items():
        dtype, shape = header[name]
        if dtype != kind.dtype:
            raise UserError(f"{path}: {name} is of {dtype}; the others are of {kind.dtype}")
        sizes = kind.shape[1:] if kind.has_length else kind.shape
        if len(shape) != len(kind.shape) or shape[len(shape) - len(sizes) :] != list(sizes) or 0 in shape:
            raise UserError(f"{path}: {name} has shape {shape}; those of the others are {list(kind.shape)}")
        if kind.has_length:
            lengths[name] = shape[0]
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{path}: all must have one length; got {said}")
    for name, length in lengths.items():
        if length > index.length:
            raise UserError(
                f"{path}: {name} has {length} places; {INDEX_FILE} says that the longest has {index.length}"
            )
        if length < index.length and not is_masked:
            raise UserError(
                f"{path}: {name} has {length} places, the longest {index.length}, and no mask says which are its own"
            )


def check_content(path: Path, index: PromptIndex) -> None:
    """See that a file is the one that was written, and of use. Raises: UserError."""
    tensors = read_prompt(path)
    if checksum(path) != index.sha256[path.name]:
        raise UserError(f"{path} is not the file that was written (its sha256 differs): remove it and encode it again")
    for name, tensor in tensors.items():
        if index.tensors[name].is_mask:
            if not bool(((tensor == 0) | (tensor == 1)).all() & tensor.any()):
                found = tensor.unique().tolist()
                raise UserError(f"{path}: {name} is a mask, of 0 and 1 and not of 0 alone; got {found}")
        elif not is_finite(tensor):
            raise UserError(f"{path}: {name} holds values that are not finite")


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; what is none goes into both ends, which are found without a copy."""
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def read_prompt(path: Path) -> dict[str, Tensor]:
    """The tensors of one prompt, in memory mapped from the file. Raises: UserError where it is damaged or missing."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """dtype and shape by name, without the values."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _kind(dtype: str, shape: Sequence[int]) -> Kind:
    """A row of numbers is a vector if they are floats, else a mask."""
    has_length = len(shape) > 1 or dtype not in FLOATS
    return Kind(dtype, ("L", *shape[1:]) if has_length else tuple(shape))


def _write_index(folder: Path, index: PromptIndex) -> None:
    values = {"version": VERSION, **asdict(index)}
    write_text(folder / INDEX_FILE, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def _check_same(folder: Path, then: PromptIndex, now: PromptIndex) -> None:
    """See that files of `then` are of use to `now`."""
    whole = {"null": then.null, **then.made_by}, {"null": now.null, **now.made_by}
    for name in {**whole[0], **whole[1]}:
        if whole[0].get(name) != whole[1].get(name):
            raise UserError(
                f"{folder} was begun with {name} = {whole[0].get(name)!r}; now it is {whole[1].get(name)!r}. Choose "
                "another folder or remove it"
            )
    for number, text in enumerate(then.prompts):
        if number >= len(now.prompts) or now.prompts[number] != text:
            raise UserError(
                f"{folder} was begun with {shortened(text)!r} as prompt {number}; new prompts go after those that are "
                "there. Choose another folder or remove it"
            )


def shortened(text: str, length: int = 60) -> str:
    """A prompt for people: on one line, at most so many characters."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
