"""Pictures of classes, drawn in a few steps by a student, or along its ODE by a teacher. Needs torch and diffusers.

pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipe(class_labels=[0, "a name"], generator=torch.Generator().manual_seed(0)).images[0]
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

TOLERANCE = 1e-6  # of a sigma: how far a scheduler may put it from where it belongs


class SiTPipeline(DiffusionPipeline):
    """
    Args:
        transformer: velocity = transformer(x_t, timestep=1000 t, class_labels=y).sample, where x_t = (1 - t) x0 + t eps
            and velocity = eps - x0.
        scheduler: a FlowMatchEulerDiscreteScheduler, which says what sigmas, our t, it makes of those that it is given:
            they must stay as they are.
        vae: decodes samples; None where they are pictures themselves.
        id2label: names of the classes that can be drawn; None for all, without names.
        sampler: what a model is made for:
            sample_shape: (C, H, W). num_classes: without "no class", which is number `num_classes`.
            sigmas: of a student, which knows these alone; None for a teacher, which takes any number of steps.
            ode_steps: so many steps keep the noise that the sample has, all later ones draw fresh noise; None for all.
            sigma_range: where the transformer is defined.
            num_inference_steps, guidance_scale: of a call that does not say.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any = None,
        id2label: dict[str, str] | None = None,
        sampler: dict[str, Any] | None = None,  # with a default, or diffusers takes it for a component
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.register_to_config(sampler=sampler, id2label=id2label)
        self.image_processor = VaeImageProcessor(do_resize=False)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | Tensor,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One picture per label.

        Args:
            class_labels: numbers or names. num_inference_steps: of a student, its own number or none.
            guidance_scale: 1 is none; what a teacher needs and a student does not.
            generator: of all noise; a list has one per picture, which then depends on nothing else.
            latents: the first noise (B, C, H, W), standard normal.
            output_type: "pil", "np" or "pt" in [0, 1], or "latent": samples as the transformer makes them.
        """
        device = self._execution_device
        labels = torch.tensor(self._labels(class_labels), device=device)
        sigmas = self._sigmas(num_inference_steps, device)
        scale = self.config["sampler"]["guidance_scale"] if guidance_scale is None else guidance_scale
        shape = (len(labels), *self.config["sampler"]["sample_shape"])

        def noise() -> Tensor:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        x_t = sigmas[0] * (noise() if latents is None else latents.to(device, torch.float32))
        ode_steps = self.config["sampler"]["ode_steps"]
        progress: Any = self.progress_bar
        for step, timestep in enumerate(progress(self.scheduler.timesteps)):
            velocity = self._velocity(x_t, timestep, labels, scale)
            x0 = x_t - sigmas[step] * velocity
            if step + 1 == len(sigmas):
                break
            fresh = noise()  # at every step, so that the k-th noise of a picture is the same whatever a step does
            eps = x0 + velocity if ode_steps is None or step < ode_steps else fresh
            x_t = (1 - sigmas[step + 1]) * x0 + sigmas[step + 1] * eps
        images: Any = x0 if output_type == "latent" else self._decoded(x0, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _velocity(self, x_t: Tensor, timestep: Tensor, labels: Tensor, scale: float) -> Tensor:
        """In float32, whatever the transformer computes in: the steps need the digits."""
        if scale != 1:
            x_t = torch.cat([x_t, x_t])
            labels = torch.cat([labels, torch.full_like(labels, self.config["sampler"]["num_classes"])])
        given = x_t.to(self.transformer.dtype)
        velocity = self.transformer(given, timestep=timestep.expand(len(given)), class_labels=labels).sample.float()
        if scale == 1:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def _sigmas(self, num_inference_steps: int | None, device: torch.device) -> Tensor:
        sampler = self.config["sampler"]
        sigmas = sampler["sigmas"]
        if sigmas is None:
            steps = sampler["num_inference_steps"] if num_inference_steps is None else num_inference_steps
            sigmas = torch.linspace(1, 0, steps + 1)[:-1].clamp(*sampler["sigma_range"]).tolist()
        elif num_inference_steps not in (None, len(sigmas)):
            raise ValueError(
                f"num_inference_steps must be {len(sigmas)} or left out: this student knows {sigmas} alone"
            )
        self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        found = self.scheduler.sigmas[: len(sigmas)]
        if (found - torch.tensor(sigmas, device=found.device)).abs().max() > TOLERANCE:
            raise ValueError(f"the scheduler makes {found.tolist()} of the sigmas {sigmas}; take one that changes none")
        return found

    def _labels(self, given: int | str | list[int | str] | Tensor) -> list[int]:
        if isinstance(given, Tensor):
            given = given.tolist()
        return [self._label(label) for label in (given if isinstance(given, list) else [given])]

    def _label(self, given: int | str) -> int:
        names = self.config["id2label"]
        if isinstance(given, str):
            found = [int(label) for label, name in (names or {}).items() if name == given]
            if not found:
                known = ", ".join(list((names or {}).values())[:5]) or "none"
                raise ValueError(f"class_labels: there is no class {given!r}; names are {known}")
            return found[0]
        num_classes = self.config["sampler"]["num_classes"]
        if not 0 <= given < num_classes or (names is not None and str(given) not in names):
            raise ValueError(f"class_labels: {given} is none of the classes 0 to {num_classes - 1}")
        return int(given)

    def _decoded(self, latents: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            latents = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
            latents = self.vae.decode(latents.to(self.vae.dtype)).sample.float()
        elif latents.shape[1] not in (1, 3):
            raise ValueError(
                f"samples of {latents.shape[1]} channels are no pictures: give a vae, or output_type='latent'"
            )
        return self.image_processor.postprocess(latents, output_type=output_type)
