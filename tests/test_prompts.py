"""The condition Prompts: its batches, its folder and every way that one can be wrong, and a model's note of its own."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.conditions import (
    ClassLabels,
    Prompts,
    begin_prompts,
    concat_rows,
    condition_of,
    finish_prompts,
    num_rows,
    take_rows,
    write_prompt,
)
from distill.conditions.prompt_files import NULL, shortened
from distill.errors import UserError

TEXTS = ["a red fox", "two owls", "3", "a boat on a lake"]
LENGTHS = {NULL: 1, 0: 3, 1: 2, 2: 5, 3: 4}
Tensors = dict[str, Tensor]


def told(number: int, length: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """An embedding, a mask with a hole in it where there is room, and a pooled vector."""
    generator = torch.Generator().manual_seed(number + 7)
    mask = torch.ones(length, dtype=torch.int64)
    mask[1:-1] = 0
    return {
        "encoder_hidden_states": torch.randn(length, 6, generator=generator).to(dtype),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(4, generator=generator).to(dtype),
    }


def write_folder(folder: Path, change: Callable[[int, Tensors], Tensors] = lambda _, tensors: tensors) -> Path:
    begin_prompts(folder, {"model": "tiny"}, TEXTS)
    for number, length in LENGTHS.items():
        write_prompt(folder, number, change(number, told(number, length)))
    finish_prompts(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "prompts")


def padded(number: int) -> Tensors:
    """What a batch must hold of a prompt, all of five places."""
    tensors = told(number, LENGTHS[number])
    for name in ("encoder_hidden_states", "encoder_attention_mask"):
        missing = torch.zeros(5 - LENGTHS[number], *tensors[name].shape[1:], dtype=tensors[name].dtype)
        tensors[name] = torch.cat([tensors[name], missing])
    return tensors


def assert_rows(y: Tensors, numbers: list[int]) -> None:
    assert y["index"].dtype == torch.int64 and y["index"].tolist() == numbers
    expected = [padded(number) for number in numbers]
    assert set(y) == {*expected[0], "index"}
    for name in expected[0]:
        # `equal` looks at values alone.
        assert y[name].dtype == expected[0][name].dtype
        assert torch.equal(y[name], torch.stack([tensors[name] for tensors in expected])), name


def test_batches_hold_what_was_written_padded_to_the_longest_of_the_folder(folder: Path) -> None:
    prompts = Prompts.load(folder)
    assert_rows(prompts.balanced(6), [0, 1, 2, 3, 0, 1])
    assert_rows(prompts.balanced(2), [0, 1])  # shorter ones alone: as long all the same
    assert_rows(prompts.examples(2), [0, 3])
    assert_rows(prompts.examples(), [0, 1, 2, 3])
    assert_rows(prompts.null(prompts.balanced(3)), [NULL] * 3)
    assert_rows(concat_rows(prompts.balanced(2), prompts.null(prompts.balanced(2))), [0, 1, NULL, NULL])
    assert_rows(take_rows(prompts.balanced(3), torch.tensor([2, 0])), [2, 0])
    drawn = prompts.random(400, torch.Generator().manual_seed(0))
    assert_rows(drawn, drawn["index"].tolist())
    assert drawn["index"].bincount(minlength=4).min() > 70 and num_rows(drawn) == 400
    again = prompts.random(400, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["index"], again["index"])


def test_only_the_rows_that_are_asked_for_are_read(folder: Path) -> None:
    prompts = Prompts.load(folder)
    for number in (1, 2, 3):
        (folder / f"0000{number}.safetensors").unlink()
    assert_rows(prompts.select(["a red fox"]), [0])
    with pytest.raises(UserError, match=r"00001\.safetensors"):
        prompts.balanced(2)


def test_prompts_are_named_by_their_text_or_their_number(folder: Path) -> None:
    prompts = Prompts.load(folder)
    # A text comes first: "3" is the third prompt, and not the one with that number.
    assert prompts.select(["two owls", "1", "3", "a boat on a lake"])["index"].tolist() == [1, 1, 2, 3]
    for wrong in ("4", "a cat", "-1", "²", "a\nb"):
        with pytest.raises(UserError) as error:
            prompts.select([wrong])
        assert str(error.value) == (
            f"prompt {shortened(wrong)!r} is not known; there are 4, from 0 on: 'a red fox', 'two owls', '3', .."
        )
    y = prompts.select(["two owls", "3"])
    assert prompts.names(y) == ["two owls", "3"] and prompts.names(prompts.null(y)) == ["", ""]
    assert prompts.groups(y).tolist() == [1, 2] and prompts.num_distinct == 4 and str(prompts) == "4 prompts"


def test_names_for_people_are_short_and_on_one_line(tmp_path: Path) -> None:
    texts = ["x" * 60, "x" * 61, "a\nb\tc\x1bd", "猫" * 70, "  a  '/\\\" $5  "]
    begin_prompts(tmp_path / "p", {}, texts)
    for number in (NULL, *range(5)):
        write_prompt(tmp_path / "p", number, {"e": torch.ones(1, 2)})
    finish_prompts(tmp_path / "p")
    prompts = Prompts.load(tmp_path / "p")
    assert prompts.group_names() == ["x" * 60, "x" * 59 + "…", "a b c d", "猫" * 59 + "…", "a '/\\\" $5"]
    assert prompts.names(prompts.balanced(5)) == texts


def test_prompts_are_equal_by_their_content(folder: Path, tmp_path: Path) -> None:
    prompts = Prompts.load(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert Prompts.load(tmp_path / "copy") == prompts and hash(Prompts.load(tmp_path / "copy")) == hash(prompts)

    def shifted(number: int, tensors: Tensors) -> Tensors:
        return tensors | {"pooled_projections": tensors["pooled_projections"] + (number == 2)}

    assert Prompts.load(write_folder(tmp_path / "other", shifted)) != prompts
    assert prompts != ClassLabels(4) and copy.deepcopy(prompts) is prompts


def test_data_can_train_a_model_if_their_tensors_are_alike(folder: Path, tmp_path: Path) -> None:
    prompts = Prompts.load(folder)

    def longer(number: int, tensors: Tensors) -> Tensors:
        return told(number, LENGTHS[number] + 1)

    def wider(_: int, tensors: Tensors) -> Tensors:
        return tensors | {"pooled_projections": torch.ones(5).bfloat16()}

    def others(number: int, tensors: Tensors) -> Tensors:
        return told(number + 10, LENGTHS[number])

    assert prompts.includes(Prompts.load(write_folder(tmp_path / "others", others)))
    for name, change in (("longer", longer), ("wider", wider)):
        assert not prompts.includes(Prompts.load(write_folder(tmp_path / name, change)))
    assert not prompts.includes(ClassLabels(4)) and not ClassLabels(4).includes(prompts)


# --- what can be wrong with a folder -----------------------------------------------------------------------------


def edited(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "prompts.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return edit


def cut(folder: Path) -> None:
    file = folder / "00001.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def kinds(**kind: Any) -> Callable[[Path], None]:
    return edited(tensors={"encoder_hidden_states": {"dtype": "BF16", "shape": ["L", 6]}} | kind)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "there is no folder of prompts FOLDER; scripts/encode_prompts.py makes one"),
    "no index": (lambda f: (f / "prompts.json").unlink(), r"FOLDER holds no prompts \(no prompts.json\); scripts/enc"),
    "not json": (lambda f: (f / "prompts.json").write_text("{"), "FOLDER/prompts.json is damaged: "),
    "a list": (lambda f: (f / "prompts.json").write_text("[1]"), "FOLDER/prompts.json is damaged: "),
    "version": (edited(version=2), "FOLDER/prompts.json is of version 2; this one reads 1"),
    "prompts": (edited(prompts=["a", 3]), "prompts.json: prompts must be a list of at least one text"),
    "no prompts": (edited(prompts=[]), "prompts.json: prompts must be a list of at least one text"),
    "null": (edited(null=None), "prompts.json: null must be the text of the null prompt; got None"),
    "length": (edited(length=True), "prompts.json: length must be a whole number from 0; got True"),
    "sha256": (edited(sha256=[]), "prompts.json: made_by and sha256 must be mappings"),
    "tensors": (edited(tensors={"x": {"dtype": "F32"}}), "prompts.json: tensors must give dtype and shape of each"),
    "a tensor named index": (kinds(index={"dtype": "I64", "shape": ["L"]}), "must not be called index"),
    "shape": (kinds(x={"dtype": "F32", "shape": ["L", 2, 3]}), r'shape of x must be \["L", D\], \["L"\] or \[P\]; got'),
    "not a float": (kinds(x={"dtype": "I64", "shape": ["L", 2]}), "x is an embedding of I64; it must be of F64, F32"),
    "a float mask": (kinds(x={"dtype": "F32", "shape": ["L"]}), "x is a mask of F32; it must be of BOOL, I64"),
    "not whole": (edited(sha256={}), "FOLDER is not whole: go on with the command that makes it"),
    "no sha256": (edited(sha256={"null.safetensors": ""}), "prompts.json: sha256 lacks 00000.safetensors"),
    "a prompt missing": (
        lambda f: (f / "00002.safetensors").unlink(),
        "FOLDER lacks prompt 2: there is no 00002.safetensors",
    ),
    "null missing": (
        lambda f: (f / "null.safetensors").unlink(),
        "FOLDER lacks the null prompt: there is no null.safetensors",
    ),
    "cut off": (cut, "FOLDER/00001.safetensors cannot be read: "),
    "too long": (edited(length=4), "00002.safetensors: encoder_.* has 5 places; .* that the longest has 4"),
}


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_is_not_right_says_what(folder: Path, break_it: Callable[[Path], Any], message: str) -> None:
    break_it(folder)
    with pytest.raises(UserError, match=message.replace("FOLDER", str(folder))) as error:
        Prompts.load(folder)
    assert len(str(error.value).splitlines()) == 1


def only(name: str, tensor: Tensor | None) -> Callable[[int, Tensors], Tensors]:
    """Prompt 1 is another than the others in one tensor, or has none."""

    def change(number: int, tensors: Tensors) -> Tensors:
        if number != 1:
            return tensors
        rest = {key: value for key, value in tensors.items() if key != name}
        return rest if tensor is None else rest | {name: tensor}

    return change


EMBEDDING = torch.ones(2, 6).bfloat16()
UNLIKE = {
    "width": (
        only("encoder_hidden_states", torch.ones(2, 7).bfloat16()),
        r"encoder_hidden_states has shape \[2, 7\]; those of",
    ),
    "width of a vector": (
        only("pooled_projections", torch.ones(3).bfloat16()),
        r"pooled_projections has shape \[3\]; th",
    ),
    "dtype": (
        only("encoder_hidden_states", EMBEDDING.float()),
        "encoder_hidden_states is of F32; the others are of BF16",
    ),
    "none": (only("encoder_attention_mask", None), "has no encoder_attention_mask, unlike the others"),
    "one more": (only("txt_ids", torch.ones(3)), "holds txt_ids, unlike the others"),
    "mask of another length": (
        only("encoder_attention_mask", torch.ones(3, dtype=torch.int64)),
        "all must have one length; got .*encoder_attention_mask 3.*",
    ),
    "empty": (
        only("encoder_hidden_states", torch.ones(0, 6).bfloat16()),
        r"encoder_hidden_states has shape \[0, 6\]; those of",
    ),
}


@pytest.mark.parametrize(("change", "message"), UNLIKE.values(), ids=UNLIKE)
def test_a_file_unlike_the_others_is_named(
    tmp_path: Path, change: Callable[[int, Tensors], Tensors], message: str
) -> None:
    write_folder(tmp_path / "prompts", change)
    with pytest.raises(UserError, match=rf"00001\.safetensors:? {message}"):
        Prompts.load(tmp_path / "prompts")


def test_without_a_mask_all_must_have_one_length(tmp_path: Path) -> None:
    def unmasked(_: int, tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if name != "encoder_attention_mask"}

    write_folder(tmp_path / "prompts", unmasked)
    with pytest.raises(UserError, match=r"null.* has 1 places, the longest 5, and no mask says which are its own"):
        Prompts.load(tmp_path / "prompts")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder_hidden_states", EMBEDDING * float("nan"), "encoder_hidden_states holds values that are not finite"),
        (
            "pooled_projections",
            torch.tensor([0, float("inf"), 1, 2]).bfloat16(),
            "pooled_projections holds values that are not",
        ),
        ("encoder_attention_mask", torch.tensor([1, 2]), r"is a mask, of 0 and 1 and not of 0 alone; got \[1, 2\]"),
        ("encoder_attention_mask", torch.tensor([0, 0]), r"is a mask, of 0 and 1 and not of 0 alone; got \[0\]"),
    ],
)
def test_values_are_looked_at_when_they_are_read_first(tmp_path: Path, name: str, tensor: Tensor, message: str) -> None:
    prompts = Prompts.load(write_folder(tmp_path / "prompts", only(name, tensor)))
    prompts.check(0)
    for read in (lambda: prompts.check(1), lambda: prompts.balanced(2)):
        with pytest.raises(UserError, match=rf"00001\.safetensors: .*{message}"):
            read()


def test_a_file_that_is_not_the_one_that_was_written_is_refused(folder: Path) -> None:
    prompts = Prompts.load(folder)
    write_prompt(folder, 1, told(9, LENGTHS[1]))
    with pytest.raises(UserError, match=r"00001\.safetensors is not the file that was written \(its sha256 differs\)"):
        prompts.balanced(2)


# --- models and their prompts ------------------------------------------------------------------------------------


def test_a_model_says_where_its_prompts_are(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Prompts.load("prompts").save(tmp_path)  # a relative path is of use from everywhere
    (tmp_path / "model").mkdir()
    shutil.move(tmp_path / "prompts_from.json", tmp_path / "model")
    monkeypatch.chdir("/")
    assert Prompts.of_model_folder(tmp_path / "model") == Prompts.load(folder)

    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(UserError, match=rf"there is no folder of prompts {folder}; .*; --prompts FOLDER names others"):
        Prompts.of_model_folder(tmp_path / "model")
    write_folder(folder, only("encoder_hidden_states", EMBEDDING))
    with pytest.raises(
        UserError, match=rf"{folder} has changed since .*prompts_from.json was written; --prompts {folder}"
    ):
        Prompts.of_model_folder(tmp_path / "model")
    (tmp_path / "model" / "prompts_from.json").write_text('{"folder": 3}')
    with pytest.raises(
        UserError, match=r"prompts_from.json is damaged: it must hold folder and digest; --prompts FOLDER"
    ):
        Prompts.of_model_folder(tmp_path / "model")
    with pytest.raises(UserError, match=r"names no prompts \(no prompts_from.json\); --prompts FOLDER does"):
        Prompts.of_model_folder(tmp_path)


def test_a_model_without_prompts_says_how_to_give_it_some() -> None:
    message = (
        r"what Linear is conditioned on: .* a folder of them, prompts=FOLDER \(scripts/encode_prompts.py makes one\)"
    )
    with pytest.raises(UserError, match=message):
        condition_of(nn.Linear(1, 1))
