"""Pipelines of diffusers with random text encoders of a few units; their tokenizers are made here."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.configuration_utils import FrozenDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WIDTH = 8
CLIP_LENGTH = 16
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(max_length: int, *, begin: bool = False) -> PreTrainedTokenizerFast:
    """A token a byte, an end behind each text, and a beginning before it as CLIP has."""
    special = ["<pad>", "</s>", "<s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if begin else "$A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=max_length,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
        padding_side="right",
    )


NUM_TOKENS = len(tokenizer(9))


def clip(kind: type = transformers.CLIPTextModelWithProjection) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return kind(config)


def t5(kind: type = transformers.T5EncoderModel, config: type = transformers.T5Config) -> Any:
    return kind(config(vocab_size=NUM_TOKENS, d_model=2 * WIDTH, d_kv=4, d_ff=WIDTH, num_layers=2, num_heads=2))


def decoder_values(num_layers: int = 2) -> dict[str, Any]:
    """The size of a language model."""
    return {
        "vocab_size": NUM_TOKENS,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": num_layers,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "max_position_embeddings": 600,
    }


def qwen_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    text = decoder_values() | {"rope_parameters": rope}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def qwen_3() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**decoder_values(num_layers=27), head_dim=4))


def gemma() -> Any:
    return transformers.Gemma2Model(transformers.Gemma2Config(**decoder_values(), head_dim=4))


def sd3() -> dict[str, Any]:
    clips = {"text_encoder": clip(), "tokenizer": tokenizer(CLIP_LENGTH, begin=True)}
    more = {"text_encoder_2": clip(), "tokenizer_2": tokenizer(CLIP_LENGTH, begin=True)}
    return {**clips, **more, "text_encoder_3": t5(), "tokenizer_3": tokenizer(512)}


def flux() -> dict[str, Any]:
    clips = {"text_encoder": clip(transformers.CLIPTextModel), "tokenizer": tokenizer(CLIP_LENGTH, begin=True)}
    return {**clips, "text_encoder_2": t5(), "tokenizer_2": tokenizer(512)}


def umt5() -> Any:
    return t5(transformers.UMT5EncoderModel, transformers.UMT5Config)


def one(encoder: Callable[[], Any], length: int = 512) -> Callable[[], dict[str, Any]]:
    return lambda: {"text_encoder": encoder(), "tokenizer": tokenizer(length)}


PIPELINES: dict[str, Callable[[], dict[str, Any]]] = {
    "Flux2KleinPipeline": one(qwen_3),
    "FluxPipeline": flux,
    "LTXPipeline": one(t5),
    "Lumina2Pipeline": one(gemma),
    "PixArtAlphaPipeline": one(t5),
    "PixArtSigmaPipeline": one(t5),
    "QwenImagePipeline": one(qwen_vl, 1024),
    "StableDiffusion3Pipeline": sd3,
    "WanPipeline": one(umt5),
}


class Listener(torch.nn.Module):
    """In the place of a transformer: keeps what it is told, and raises `HeardError` when it was told two rows."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, patch_size: int | tuple[int, ...]) -> None:
        super().__init__()
        self.told: list[dict[str, torch.Tensor]] = []
        self.config = FrozenDict(
            in_channels=16, out_channels=16, patch_size=patch_size, sample_size=8, guidance_embeds=False, image_dim=None
        )

    @contextlib.contextmanager
    def cache_context(self, *_: Any, **more: Any) -> Iterator[None]:
        yield

    def forward(self, *args: Any, **told: Any) -> tuple[torch.Tensor]:
        tensors = {name: value for name, value in told.items() if isinstance(value, torch.Tensor)}
        self.told += [
            {name: value[i] for name, value in tensors.items()} for i in range(len(told["encoder_hidden_states"]))
        ]
        if len(self.told) >= 2:
            raise HeardError
        return (torch.zeros_like(told["hidden_states"]),)


class HeardError(Exception):
    pass


def what_is_told(pipeline: Any, prompt: str, negative: str) -> list[dict[str, torch.Tensor]]:
    """What a pipeline, called by a user, tells its transformer of a prompt and of a negative one, in its own order."""
    name = type(pipeline).__name__
    listener = Listener((1, 2, 2) if name == "WanPipeline" else 1)
    scheduler = diffusers.DDIMScheduler() if name.startswith("PixArt") else diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline.register_modules(transformer=listener, scheduler=scheduler)
    wanted = {
        "prompt": prompt,
        "negative_prompt": negative,
        "height": 128,
        "width": 128,
        "num_frames": 1,
        "num_inference_steps": 1,
        "guidance_scale": 3.0,
        "true_cfg_scale": 3.0,
        "clean_caption": False,
        "use_resolution_binning": False,
    }
    taken = inspect.signature(pipeline.__call__).parameters
    with contextlib.suppress(HeardError):
        pipeline(**{name: value for name, value in wanted.items() if name in taken})
    return listener.told


def make_pipeline(name: str, seed: int = 0) -> Any:
    """A pipeline of this class with text encoders alone."""
    torch.manual_seed(seed)
    parts = PIPELINES[name]()
    others = {"scheduler", "vae", "transformer"}
    pipeline = getattr(diffusers, name)(**parts, **dict.fromkeys(others))
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def save_pipeline(folder: Path, name: str, seed: int = 0) -> Path:
    make_pipeline(name, seed).save_pretrained(folder)
    return folder
