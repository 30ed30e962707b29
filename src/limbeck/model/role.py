"""From an opened model to a role."""

from collections.abc import Callable
from typing import Any

from torch import nn

from limbeck.errors import Refused
from limbeck.model.adapters import learning
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Role
from limbeck.model.crepe import Crepe
from limbeck.model.denoiser import Denoiser, is_denoiser
from limbeck.model.image import Image, is_image
from limbeck.model.latents import Latents
from limbeck.model.masked_blocks import CONFIG, MaskedBlocks
from limbeck.model.opening import Opened
from limbeck.model.pitch import Pitch
from limbeck.model.plain import Plain
from limbeck.model.ranker import BiEncoder, CrossEncoder
from limbeck.model.reference import Reference, sentence_encoder
from limbeck.model.sound import Sound, is_sound
from limbeck.model.text import Text
from limbeck.model.transcriber import Transcriber, is_transcriber
from limbeck.model.vision_family import vision_family
from limbeck.model.vision_language import VisionLanguage
from limbeck.text.spans import fingerprint


def as_role(opened: Opened) -> Role:
    """A frozen role that speaks for a model of transformers with a tokenizer, for an image classifier, an encoder of speech, or a denoiser.

    Raises:
        Refused: for a model without a tokenizer, or of a family whose anatomy nobody has written down.
    """
    if (reader := without_tokenizer(opened.module)) is not None:
        reader.provenance = opened.provenance
        return reader.eval()
    if opened.tokenizer is None:
        raise Refused("tokenizer", str(opened.reference.text), "a tokenizer beside the weights", "none", "save the tokenizer into the folder")
    role = speaking(opened.module, opened.tokenizer, opened.reference)
    if isinstance(role, VisionLanguage) and hasattr(role.module.config, "image_seq_length"):
        opened.config.image_seq_length = role.num_patches  # as its own tower has it, for whoever reads the config
    role.provenance = opened.provenance
    return role.eval()


def without_tokenizer(module: Any) -> Role | None:
    """The role of a model that reads no text; None of one that does."""
    if is_image(module):
        return Image(module)
    if is_sound(module):
        return Sound(module)
    if isinstance(module, Crepe):
        return Pitch(module)
    if is_denoiser(module):
        return Latents(module) if hasattr(module, "encoders") else Denoiser(module)
    return None


def without_weights(module: Any, tokenizer: Callable[[], Any], reference: Reference) -> Role:
    """The role of a module on the meta device, which has only shapes; its tokenizer is asked for where it reads with one."""
    return without_tokenizer(module) or speaking(module, tokenizer(), reference)


def speaking(module: Any, tokenizer: Any, reference: Reference) -> Text:
    """The role of a model that reads, by its class, and for a bare encoder by what lies beside its weights; it may be on the meta device."""
    found, whole = anatomy(module), vision_family(module)
    if whole is not None:
        return VisionLanguage(module, tokenizer, found, whole)
    if is_transcriber(module):
        return Transcriber(module, tokenizer, found)
    if type(module).__name__.endswith("ForSequenceClassification") and module.config.num_labels == 1:
        return CrossEncoder(module, tokenizer, found)
    if getattr(module.config, CONFIG, None) is not None:
        return MaskedBlocks(module, tokenizer, found)
    sentences = None if found.causal or found.has("head") else sentence_encoder(reference)
    return Text(module, tokenizer, found) if sentences is None else BiEncoder(module, tokenizer, found, sentences.get("max_seq_length"))


def given(module: Any, **fields: Any) -> Role:
    """A role for a module that a user holds: a role as it is, a language model with its tokenizer, or any other module.

    Where peft has put adapters into it, these alone learn.
    """
    if isinstance(module, Role):
        return module
    if fields.get("tokenizer") is not None:
        made = Text if getattr(module.config, CONFIG, None) is None else MaskedBlocks
        role: Role = made(module, fields["tokenizer"], anatomy(module))
    else:
        assert isinstance(module, nn.Module)
        role = Plain(module, **{name: value for name, value in fields.items() if name != "tokenizer"})
    role.learns = learning(module)
    return role.eval()


def share_tokenizer(role: Role, first: Role, where: str, among: str = "teacher and student") -> None:
    """Gives a role the tokenizer object of another one.

    Raises:
        Refused: `tokenizer`, where they are two: ids of one mean other text in the other.
    """
    if fingerprint(role.tokenizer) != fingerprint(first.tokenizer):
        raise Refused(
            "tokenizer",
            where,
            f"one tokenizer for {among}",
            f"{len(first.tokenizer):,} and {len(role.tokenizer):,} ids, which mean different text",
            "start from a model with the teacher's tokenizer, or align: byte_chunks (objective: chunk_likelihood, or a divergence with per: chunk)",
        )
    role.tokenizer = first.tokenizer
