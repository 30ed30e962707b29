"""A folder of a text-to-image pipeline, as diffusers writes Stable Diffusion: opened part by part, and written again around another network."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.component import changed, validate
from limbeck.errors import Refused
from limbeck.model.folder import check_folder, check_sizes, inside
from limbeck.model.from_diffusers import OWN, DenoiserFile, beside, of_class, scheduler_of, with_weights
from limbeck.model.headers import corrupt, quoted, read_json
from limbeck.model.latents import Encoders
from limbeck.model.loading import build_config, build_meta, foreign, open_folder
from limbeck.model.parametrisation import Parametrisation
from limbeck.model.reference import PIPELINE, Reference, existing, parts_digest, plain_config
from limbeck.noise.base import AnyNoise, Predicts
from limbeck.noise.vp import VP
from limbeck.store import sha256_json, write_json

KEY = "text_to_image"
"""Of a config file: the denoiser that it describes."""
KIND = "StableDiffusionPipeline"
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
"""Part -> the class that it must be of."""
FAST = "CLIPTokenizerFast"
ALONE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
"""Fields of a network's config that ask for conditions beside the caption."""
EMPTY_CAPTION = 1
"""The label that stands for no condition; a caption counts as 0."""


class PipelineFile(DenoiserFile):
    """What a config file says of a pipeline with random weights; captions are cut into bytes."""

    denoiser: Literal["text_to_image"]
    noise: AnyNoise = VP(betas="scaled_linear", start=0.00085, end=0.012)
    predicts: Predicts = "epsilon"
    unet: dict[str, Any] = Field(default_factory=dict)
    """Of UNet2DConditionModel, by name."""
    vae: dict[str, Any] = Field(default_factory=dict)
    """Of AutoencoderKL."""
    text_encoder: dict[str, Any] = Field(default_factory=dict)
    """Of a CLIPTextConfig."""

    def build(self, where: str) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        module: Any = of_class(PARTS["unet"], self.unet, f"{where}  unet", (PARTS["unet"],))
        vae = of_class(PARTS["vae"], self.vae, f"{where}  vae", (PARTS["vae"],))
        with foreign(f"{where}  text_encoder", "options that a CLIPTextConfig accepts"):
            tokenizer = letters(self.text_encoder.get("max_position_embeddings", 77))
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
            reader = CLIPTextModel(CLIPTextConfig(**{"vocab_size": len(tokenizer), **ends, **self.text_encoder}))
        module.parametrisation = self.known(EMPTY_CAPTION)
        module.encoders = Encoders(vae, reader, tokenizer, sha256_json(self.model_dump(mode="json")))
        return fitting(module, where)


def letters(places: int) -> Any:
    """A tokenizer of captions whose tokens are bytes, within a word or at its end."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    every = sorted(ByteLevel.alphabet())
    names = [*every, *(name + "</w>" for name in every), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=places)


def described(reference: Reference) -> Callable[[str], nn.Module] | None:
    """What makes the module of a reference that names a pipeline, on a device; None for any other.

    Raises:
        Refused: `family`, for a pipeline with other parts, or a part that stands alone.
    """
    where = reference.text
    if reference.scheme == "config":
        config = plain_config(reference)
        if not isinstance(config, Mapping) or config.get("denoiser") != KEY:
            return None
        check_sizes(existing(reference), dict(config))
        return lambda device: from_config(config, where, device)
    path = folder_of(reference)
    return None if path is None else lambda device: open_pipeline(path, where, device)


def from_config(config: Mapping[str, Any], where: str, device: str) -> nn.Module:
    """The module of a config with random weights from its seed."""
    made: PipelineFile = validate(PipelineFile, dict(config), where)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(made.seed)
        return made.build(where)


def folder_of(reference: Reference) -> Path | None:
    """The folder of a pipeline."""
    if reference.scheme not in ("path", "run"):
        return None
    path = existing(reference)
    if not (path / PIPELINE).is_file():
        config = read_json(inside(path, "config.json"), 10_000_000) if (path / "config.json").is_file() else {}
        if config.get("_class_name") in (PARTS["unet"], PARTS["vae"]):
            got, do = f"{config['_class_name']} alone", f"name the folder above, which holds {PIPELINE}"
            raise Refused("family", reference.text, "a whole pipeline, whose captions and images are encoded", got, do)
        return None
    index = read_json(inside(path, PIPELINE))
    check_sizes(path / PIPELINE, index)
    found = {name: (index.get(name) or [None, None])[-1] for name in PARTS}
    found["tokenizer"] = PARTS["tokenizer"] if found["tokenizer"] == FAST else found["tokenizer"]
    if index.get("_class_name") != KIND or found != PARTS:
        odd = next((f"{name}: {found[name]}" for name in PARTS if found[name] != PARTS[name]), "")
        got = quoted(index.get("_class_name")) + f", {odd}" * bool(odd)
        expected = f"{KIND} of {', '.join(PARTS.values())}"
        raise Refused("family", f"{reference.text}  {PIPELINE}", expected, got, "use a pipeline laid out as Stable Diffusion 1 and 2 are", 3)
    if missing := [name for name in (*PARTS, "scheduler") if not (path / name).is_dir()]:
        raise Refused("reference", reference.text, f"the folders {', '.join((*PARTS, 'scheduler'))}", f"no {missing[0]}", "save the pipeline again")
    return path


def open_pipeline(path: Path, where: str, device: str = "cpu") -> nn.Module:
    """The network of a pipeline, which carries its `parametrisation` and its `encoders`; on the meta device without weights.

    Raises:
        Refused: `extra` without diffusers; `noise`, where its schedule is not known; those of `fitting`.
        Failed: `corrupt`, for files that cannot be read.
    """
    module: Any = part(path, "unet", where, device)
    module.parametrisation = known(path / "unet", where)
    vae: Any = part(path, "vae", where, device)
    places = f"{where}  text_encoder"
    folder = check_folder(path / "text_encoder", places, weights=device != "meta")
    reader: Any = build_meta(build_config(folder.config, places), places) if device == "meta" else open_folder(folder, places, "float32")[0]
    from transformers import AutoTokenizer

    with foreign(f"{where}  tokenizer", "a tokenizer that transformers can read"):
        tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer", local_files_only=True, trust_remote_code=False)
    module.encoders = Encoders(vae, reader, tokenizer, parts_digest(path, ("vae", "text_encoder", "tokenizer")))
    return fitting(module, where)


def fitting(module: Any, where: str) -> nn.Module:
    """A network with its encoders, in eval mode.

    Raises:
        Refused: `family`, for a network that asks for more than captions.
        Failed: `corrupt`, for parts that do not go together.
    """
    vae, reader = module.encoders.vae, module.encoders.text_encoder
    if (more := next((name for name in ALONE if getattr(module.config, name, None) is not None), None)) is not None:
        got = f"{more}: {quoted(getattr(module.config, more))}"
        raise Refused("family", f"{where}  unet", "a network that hears samples, times and captions alone", got, "use another pipeline", 3)
    pairs = {"channels of the code": (module.config.in_channels, vae.config.latent_channels)}
    pairs["width of a caption"] = (module.config.cross_attention_dim, reader.config.hidden_size)
    for name, (heard, said) in pairs.items():
        if heard != said:
            raise corrupt(where, f"parts of one {name}", f"the network hears {heard}, the encoder says {said}")
    return module.eval()


def part(path: Path, name: str, where: str, device: str) -> nn.Module:
    """One part that is of diffusers."""
    config = read_json(inside(path, f"{name}/config.json"), 10_000_000)
    check_sizes(path / name / "config.json", config)
    plain = {key: value for key, value in config.items() if not key.startswith("_")}

    def make(device: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return of_class(PARTS[name], plain, f"{where}  {name}", (PARTS[name],))

    return make(device) if device == "meta" else with_weights(path / name, make, f"{where}  {name}")


def known(folder: Path, where: str) -> Parametrisation:
    """What lies beside the network; where that does not tell, it was trained with the empty caption too, as such pipelines are."""
    found = beside(folder, where)
    return found if (folder / OWN).is_file() else changed(found, null_label=EMPTY_CAPTION)


def write_pipeline(module: Any, folder: Path) -> None:
    """Writes a network with the encoders that it was opened with, as diffusers does."""
    import diffusers

    encoders, parametrisation = module.encoders, module.parametrisation
    plain: dict[str, Any] = scheduler_of(parametrisation) or {"_class_name": "DDIMScheduler"}
    offset = {"steps_offset": 1} if plain["_class_name"] == "DDIMScheduler" else {}  # pipelines insist on it, and trailing steps do not hear it
    scheduler = getattr(diffusers, plain["_class_name"]).from_config({key: x for key, x in plain.items() if key != "_class_name"} | offset)
    parts = {"unet": module, "vae": encoders.vae, "text_encoder": encoders.text_encoder, "tokenizer": encoders.tokenizer}
    beside = {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**parts, **beside).save_pretrained(folder, safe_serialization=True)
    write_json(folder / "unet" / OWN, parametrisation.model_dump(mode="json"))
