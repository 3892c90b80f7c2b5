"""Prompts are encoded as the pipelines do it, and a call that was stopped goes on."""

from __future__ import annotations

import inspect
import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.conditions import Prompts, slice_rows
from distill.data.prompt_encoding import TOLD, TextEncoders, encode_prompts, read_prompts
from distill.errors import UserError
from distill.files import locked
from distill.models import load_model
from distill.models.stock import STOCK
from tests.text_pipelines import CLIP_LENGTH, PIPELINES, WIDTH, make_pipeline, save_pipeline, what_is_told
from tests.tiny_transformers import randomised

SCRIPT = Path(__file__).parents[1] / "scripts" / "encode_prompts.py"
PROMPTS = ["a fox", "two owls in a tree at night", "a boat"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pixart"), "PixArtSigmaPipeline")


def encoded(pipeline: Path, folder: Path, prompts: list[str] = PROMPTS, **settings: Any) -> Prompts:
    settings = {"dtype": torch.float32, "max_length": None} | settings
    encoders = TextEncoders(str(pipeline), CPU, settings.pop("dtype"), settings.pop("max_length"))
    return encode_prompts(prompts, encoders, folder, batch_size=2, **settings)


# A pipeline that guides in one pass puts the negative prompt first.
NEGATIVE_FIRST = ("LTXPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline")


@pytest.mark.parametrize("name", PIPELINES)
def test_a_model_is_told_what_the_pipeline_tells_its_transformer(tmp_path: Path, name: str) -> None:
    null = "" if name == "Flux2KleinPipeline" else "no owls"  # Klein takes no other
    prompts = encoded(save_pipeline(tmp_path / "pipeline", name), tmp_path / "prompts", null=null)
    y, pipeline = prompts.balanced(3), make_pipeline(name)
    for row, text in enumerate(PROMPTS[:2]):
        heard = what_is_told(pipeline, text, null)
        if name in NEGATIVE_FIRST:
            heard.reverse()
        assert_told(slice_rows(y, row, row + 1), heard[0])
        assert_told(slice_rows(prompts.null(y), row, row + 1), heard[1])


def assert_told(y: dict[str, torch.Tensor], heard: dict[str, torch.Tensor]) -> None:
    """One row is what a transformer heard, up to padding, which its mask keeps it from seeing."""
    row = {name: tensor[0] for name, tensor in y.items() if name != "index"}
    mask = next((name for name in row if name.endswith("mask")), None)
    if mask is not None:
        nothing = torch.ones(len(heard["encoder_hidden_states"]))  # how Qwen-Image says that no place is padding
        ours, theirs = row.pop(mask).bool(), heard.get(mask, nothing).bool()
        assert ours.sum() == theirs.sum()
        row["encoder_hidden_states"] = row["encoder_hidden_states"][ours]
        heard = heard | {"encoder_hidden_states": heard["encoder_hidden_states"][theirs]}
    for name, tensor in row.items():  # rounding, which depends on the size of a batch, grows over 27 layers
        torch.testing.assert_close(tensor, heard[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", TOLD)
def test_names_are_arguments_of_the_transformer(name: str) -> None:
    hint = get_type_hints(getattr(diffusers, name).__init__)["transformer"]
    transformer = next((kind for kind in get_args(hint) if kind is not type(None)), hint)
    told = TOLD[name]
    assert {*told.prompt, *told.null} <= set(inspect.signature(transformer.forward).parameters)
    if transformer.__name__ in STOCK:  # and what the family of stock transformers asks for
        stock = STOCK[transformer.__name__]
        assert set(told.prompt) == {*stock.conditions, *stock.masks}


def test_a_stock_model_is_told_what_its_pipeline_tells_it(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline")
    prompts = encoded(folder, tmp_path / "prompts")
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    transformer = randomised(
        diffusers.SD3Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, out_channels=4, joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH, pos_embed_max_size=4, **sizes,
        )
    )  # fmt: skip
    transformer.save_pretrained(folder / "transformer")
    model, x_t, t = load_model(folder, str(tmp_path / "prompts")), torch.randn(2, 4, 4, 4), torch.tensor([0.3, 0.8])
    told = [what_is_told(make_pipeline("StableDiffusion3Pipeline"), text, "")[1] for text in PROMPTS[:2]]
    told = {
        name: torch.stack([each[name] for each in told]) for name in ("encoder_hidden_states", "pooled_projections")
    }
    expected = transformer(hidden_states=x_t, timestep=1000 * t, return_dict=False, **told)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(x_t, t, prompts.balanced(2)), expected, rtol=1e-3, atol=1e-4)


def test_every_pipeline_is_tried_but_one() -> None:
    """Flux.2's own has a tokenizer for pictures; it gives the same outputs as Klein, which is tried."""
    assert set(TOLD) == {*PIPELINES, "Flux2Pipeline"} and TOLD["Flux2Pipeline"] == TOLD["Flux2KleinPipeline"]


def test_length_and_dtype_are_as_asked_for(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline")
    y = encoded(pipeline, tmp_path / "prompts", max_length=9, dtype=torch.bfloat16).balanced(2)
    assert y["encoder_hidden_states"].shape[1] == CLIP_LENGTH + 9
    assert {tensor.dtype for name, tensor in y.items() if name != "index"} == {torch.bfloat16}


def test_encoders_take_turns_on_the_device(tmp_path: Path) -> None:
    encoders = TextEncoders(str(save_pipeline(tmp_path / "sd3", "StableDiffusion3Pipeline")), CPU)
    encoders.encode(["a fox"])
    hooks = encoders._pipeline._all_hooks
    models = [hook.model for hook in hooks]
    assert models == [encoders._pipeline.components[f"text_encoder{i}"] for i in ("", "_2", "_3")]
    assert [hook.hook.prev_module_hook for hook in hooks] == [None, *hooks[:2]]  # what each sends away
    assert encoders._pipeline.components["transformer"] is None and encoders._pipeline.components["vae"] is None


def test_padding_that_a_mask_tells_is_not_stored(pixart: Path, tmp_path: Path) -> None:
    prompts = encoded(pixart, tmp_path / "prompts")
    assert prompts.index.length == len(PROMPTS[1]) + 1  # a token a byte, and the end
    stored = load_file(tmp_path / "prompts" / "00000.safetensors")
    assert stored["encoder_hidden_states"].shape[0] == len(PROMPTS[0]) + 1


# --- a call that is stopped, and another that follows --------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.glob("*.safetensors"))}


def test_a_call_that_was_stopped_goes_on(pixart: Path, tmp_path: Path) -> None:
    counts: list[int] = []

    def stop(number: int) -> None:
        counts.append(number)
        if len(counts) == 3:  # those that are there, the null prompt, two prompts
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(pixart, tmp_path / "prompts", advance=stop)
    assert counts == [0, 1, 2]
    with pytest.raises(UserError, match="is not whole: go on with the command that makes it"):
        Prompts.load(tmp_path / "prompts")
    before = contents(tmp_path / "prompts")
    assert list(before) == ["00000.safetensors", "00001.safetensors", "null.safetensors"]
    prompts = encoded(pixart, tmp_path / "prompts", advance=counts.append)
    assert counts[3:] == [3, 1]
    after = contents(tmp_path / "prompts")
    assert len(after) == 4 and {name: after[name] for name in before} == before
    assert prompts == encoded(pixart, tmp_path / "at once")


def test_a_list_may_become_longer(pixart: Path, tmp_path: Path) -> None:
    short = encoded(pixart, tmp_path / "prompts", PROMPTS[:2])
    before = contents(tmp_path / "prompts")
    longer = encoded(pixart, tmp_path / "prompts")
    after = contents(tmp_path / "prompts")
    assert {name: after[name] for name in before} == before
    assert short.num_distinct == 2 and longer.num_distinct == 3 and longer != short
    assert encoded(pixart, tmp_path / "prompts") == longer and contents(tmp_path / "prompts") == after


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (
            ["a fox", "an owl", "a boat"],
            {},
            "begun with 'two owls in a tree at night' as prompt 1; new prompts go after",
        ),
        (PROMPTS[:2], {}, "begun with 'a boat' as prompt 2; new prompts go after those that are there"),
        (PROMPTS, {"null": "blurred"}, "begun with null = ''; now it is 'blurred'. Choose another folder or remove it"),
        (PROMPTS, {"dtype": torch.bfloat16}, "begun with dtype = 'float32'; now it is 'bfloat16'"),
        (PROMPTS, {"max_length": 20}, "begun with max_length = 300; now it is 20"),
    ],
)
def test_other_prompts_do_not_come_among_those_that_are_there(
    pixart: Path, tmp_path: Path, prompts: list[str], settings: dict[str, Any], message: str
) -> None:
    whole = encoded(pixart, tmp_path / "prompts")
    with pytest.raises(UserError, match=message):
        encoded(pixart, tmp_path / "prompts", prompts, **settings)
    assert Prompts.load(tmp_path / "prompts") == whole


def test_another_model_is_refused(pixart: Path, tmp_path: Path) -> None:
    encoded(pixart, tmp_path / "prompts")
    other = save_pipeline(tmp_path / "other", "PixArtSigmaPipeline", seed=1)
    with pytest.raises(UserError, match=f"begun with model = '{pixart}'; now it is '{other}'"):
        encoded(other, tmp_path / "prompts")


def test_a_folder_has_one_writer(pixart: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "prompts"), pytest.raises(UserError, match="prompts is being written by"):
        encoded(pixart, tmp_path / "prompts")
    assert encoded(pixart, tmp_path / "prompts").num_distinct == 3


# --- files of prompts --------------------------------------------------------------------------------------------


def test_prompts_are_read_from_text_and_from_jsonl(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes('\ufeff# animals\r\n a fox \r\n\r\n猫, "quoted" / a\u2028b\na fox\n#no\n3 # of them'.encode())
    assert read_prompts(text) == ["a fox", '猫, "quoted" / a\u2028b', "3 # of them"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "# a\\nb", "id": 3}\n\n{"prompt": " c\u2028d"}\n')
    assert read_prompts(lines) == ["# a\nb", "c\u2028d"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"# nothing\n\n", "p.txt holds no prompts"),
        ("p.txt", "a föx".encode("latin-1"), "p.txt is not in UTF-8"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}',
            r'p.jsonl, line 2: expected \{"prompt": "some text"\}; got \{"te',
        ),
        ("p.jsonl", b"a fox", "p.jsonl, line 1: expected"),
        ("p.jsonl", b'{"prompt": 3}', "p.jsonl, line 1: expected"),
        ("p.jsonl", b'{"prompt": "  "}', "p.jsonl, line 1: expected"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "p.jsonl, line 1: expected"),
    ],
)
def test_a_file_of_prompts_that_is_not_right_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)


# --- the script --------------------------------------------------------------------------------------------------


def change_index(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model_index.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / "text_encoder" / "model.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})

    return changed


def only_pickles(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()


LAST = "encoder.final_layer_norm.weight"
FAULTS = {
    "no pipeline": (
        lambda f: (f / "model_index.json").unlink(),
        "cannot be read: Error no file named model_index.json",
    ),
    "another class": (change_index(_class_name="DiTPipeline"), "is of DiTPipeline; prompts are encoded by Flux2Klein"),
    "no encoder": (change_index(text_encoder=[None, None]), "has no text_encoder; all of its encoders are needed"),
    "unknown class": (change_index(text_encoder=["transformers", "Nothing"]), "text_encoder cannot be read: .*Nothing"),
    "missing weights": (change_weights(lambda w: w.pop(LAST)), f"text_encoder lacks {LAST}, or it has not the shape"),
    "other shape": (change_weights(lambda w: w.update({LAST: torch.ones(3)})), f"text_encoder lacks {LAST}, or it has"),
    "not finite": (
        change_weights(lambda w: w[LAST].fill_(torch.inf)),
        "prompt '': encoder_hidden_states is not finite in torch.float32\n",
    ),
    "pickles": (only_pickles, "text_encoder cannot be read: "),
}


def call(*arguments: object) -> int:
    return runpy.run_path(str(SCRIPT))["main"]([str(each) for each in arguments])


@pytest.mark.parametrize(("break_it", "message"), FAULTS.values(), ids=FAULTS)
def test_a_pipeline_that_is_not_right_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], Any], message: str
) -> None:
    pipeline = save_pipeline(tmp_path / "pipeline", "PixArtAlphaPipeline")
    break_it(pipeline)
    (tmp_path / "prompts.txt").write_text("a fox")
    capsys.readouterr()
    assert call(tmp_path / "prompts.txt", pipeline, tmp_path / "out", "--device", "cpu", "--dtype", "float32") == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1 and not captured.out
    assert captured.err.startswith("encode_prompts: error: ")
    assert re.search(message, captured.err), captured.err


def test_the_script_says_what_it_made(pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\ntwo owls")
    arguments = (tmp_path / "prompts.txt", pixart, tmp_path / "out", "--negative", "bad", "--max-length", 8)
    assert call(*arguments, "--device", "cpu") == 0
    assert (
        "out: 2 prompts of L = 8: encoder_attention_mask (L) in I64, encoder_hidden_states (L, 16) in BF16\n"
        in capsys.readouterr().out
    )
    prompts = Prompts.load(tmp_path / "out")
    y = prompts.select(["two owls"])
    assert prompts.names(prompts.null(y)) == ["bad"] and y["encoder_hidden_states"].dtype == torch.bfloat16
    assert call(tmp_path / "none.txt", pixart, tmp_path / "out") == 2
    assert call(tmp_path / "prompts.txt", "no/such", tmp_path / "new") == 2
    errors = capsys.readouterr().err.splitlines()
    assert (
        "there is no file" in errors[0] and "`hf download NAME` gets a pipeline there" in errors[1] and len(errors) == 2
    )
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        call(*arguments[:3], "--max-length", 0)
