"""A folder of a text-to-image pipeline, as diffusers writes Stable Diffusion: opened part by part, and written again around another network."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.component import changed
from limbeck.errors import Refused
from limbeck.model.folder import check_folder, check_sizes, inside
from limbeck.model.from_diffusers import OWN, beside, of_class, scheduler_of, with_weights
from limbeck.model.headers import corrupt, quoted, read_json
from limbeck.model.latents import Encoders
from limbeck.model.loading import build_config, build_meta, foreign, open_folder
from limbeck.model.parametrisation import Parametrisation
from limbeck.model.reference import PIPELINE, Reference, existing, parts_digest
from limbeck.store import write_json

KIND = "StableDiffusionPipeline"
PARTS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
"""Part -> the class that it must be of."""
FAST = "CLIPTokenizerFast"
ALONE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")
"""Fields of a network's config that ask for conditions beside the caption."""
EMPTY_CAPTION = 1
"""The label that stands for no condition; a caption counts as 0."""


def described(reference: Reference) -> Path | None:
    """The folder of a reference that names a pipeline; None for any other.

    Raises:
        Refused: `family`, for a pipeline with other parts, or a part that stands alone.
    """
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
        Refused: `extra` without diffusers; `noise`, where its schedule is not known; `family`, for a network that asks for more than captions.
        Failed: `corrupt`, for parts that do not go together.
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
