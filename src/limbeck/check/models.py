"""Tiny models, rows, and the gradients of one window, for the contracts that run models. Each is built once a process."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.check.contract import NotClaimed
from limbeck.component import find, members
from limbeck.data.base import Part, Place, Rows
from limbeck.errors import Refused
from limbeck.model.anatomy import anatomy, family_files, read_family
from limbeck.model.base import Models, Role
from limbeck.model.crepe import KEY, build
from limbeck.model.denoiser import MADE, PREDICTIONS, Denoiser
from limbeck.model.image import Image
from limbeck.model.mlp_denoiser import MLPDenoiser
from limbeck.model.parametrisation import Parametrisation
from limbeck.model.pitch import Pitch
from limbeck.model.pixels import Preprocessing
from limbeck.model.ranker import BiEncoder, CrossEncoder
from limbeck.model.sound import Hearing, Sound
from limbeck.model.text import Text
from limbeck.model.transcriber import Transcriber
from limbeck.model.vision_family import vision_family
from limbeck.model.vision_language import VisionLanguage
from limbeck.noise.rectified_flow import RectifiedFlow
from limbeck.numerics import Streams
from limbeck.signals import Loss, Row, unit_of
from limbeck.student.base import Surgery
from limbeck.teacher.base import Teacher
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.spans import fingerprint
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage, Turn
from limbeck.train.window import count, made, prepare, window

WIDE = 24
"""Width of the teacher: not the student's, so that maps between widths are exercised."""
Layout = Literal["auto", "packed", "padded"]
GROUPS = 5
ALONE = 7
"""More parts than there are groups: each group alone, and some parts empty."""
TOKENIZER = ByteTokenizer()
WORDS = ("ice", "floats on water", "", "because it is", "less dense", "a", "than the rest", "of it", "who knows", "42")
SIZES = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 32, "vocab": len(TOKENIZER), "context": 64}
"""Of a small model, by the plain names that the anatomy translates into fields of a family's config."""


def family_of(name: str, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> Text:
    """A small untrained language model of a family, from its config, with a tokenizer of bytes."""
    import transformers

    if name in family_files("speech"):
        return transcriber_of(seed, dtype, **sizes)
    family = read_family(family_files()[name])
    fields = {family.sizes[size]: value for size, value in {**SIZES, **sizes}.items() if size in family.sizes}
    ids = {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    config = transformers.AutoConfig.for_model(name, **fields, **ids)
    config._attn_implementation = "eager"
    head = next(c for c, places in family.classes.items() if places.head and c.endswith(("CausalLM", "LMHeadModel", "MaskedLM")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = getattr(transformers, head)(config)
        for parameter in module.parameters():  # else norms and biases are all alike, and what is missed would not show
            parameter.data += 0.02 * torch.randn_like(parameter)
    role = Text(module.to(dtype).eval(), TOKENIZER, anatomy(module))
    role.requires_grad_(False)
    return role


@cache
def fillers(seed: int = 0, width: int = WIDE) -> Models:
    """A student and a teacher that fill in masked blocks, in double precision."""
    both = pair(seed, width)
    return Models({name: fills_blocks(copy.deepcopy(both[name], {id(TOKENIZER): TOKENIZER})) for name in both})


def fills_blocks(role: Role) -> Role:
    """The role as one that fills in blocks of four tokens."""
    return find(Surgery, "masked_blocks").model_validate({"length": 4})(role)  # type: ignore[operator]


POINT_CLASSES = 8
"""Classes of example points."""
SIDE, CLASSES = 8, 10
"""Height and width of example images, and their classes."""


def classifier(
    seed: int = 0, dtype: torch.dtype = torch.float64, channels: int = 1, side: int = SIDE, classes: int = CLASSES, width: int = 16
) -> Image:
    """A small untrained vision transformer of two blocks."""
    import transformers

    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * width}
    sizes |= {"image_size": side, "patch_size": max(side // 4, 1), "num_channels": channels, "num_labels": classes}
    config: Any = transformers.AutoConfig.for_model("vit", **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.ViTForImageClassification(config)
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    role = Image(module.to(dtype).eval(), Preprocessing((0.5,) * channels, (0.25,) * channels, (side, side)))
    role.requires_grad_(False)
    return role


@cache
def pictures(seed: int = 0, num: int = 40, split: str = "train") -> tuple[Row, ...]:
    """Images of noise with a class, in some of which the class shows as a bright line."""
    draw = torch.Generator().manual_seed(seed)
    out = []
    for i in range(num):
        pixels = torch.randint(0, 128, (1, SIDE, SIDE), generator=draw, dtype=torch.uint8)
        pixels[0, i % SIDE] += 100
        label = i % SIDE if i % 4 else (i + 3) % CLASSES
        out.append(Row(f"picture-{seed}-{i}", {"pixels": pixels, "label": label}, str(label), split=split, source=f"picture-{i}"))
    return tuple(out)


RATE = 8000
"""Numbers a second of example sounds."""


def hearing_model(seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 2, width: int = 16, family: str = "hubert") -> Sound:
    """A small untrained encoder of sounds, of 125 frames a second."""
    import transformers

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * width}
    front = {"conv_dim": [8, 8], "conv_kernel": [16, 8], "conv_stride": [8, 8], "num_feat_extract_layers": 2}
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    still = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"), 0.0)
    config: Any = transformers.AutoConfig.for_model(family, **sizes, **front, **places, **still)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.AutoModel.from_config(config)
        for parameter in module.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    role = Sound(module.to(dtype).eval(), Hearing(RATE))
    role.requires_grad_(False)
    return role


@cache
def clips(seed: int = 0, num: int = 40, split: str = "train") -> tuple[Row, ...]:
    """Tones in noise, of two pitches and of several lengths."""
    draw, out = torch.Generator().manual_seed(seed), []
    for i in range(num):
        time = torch.arange(400 + 80 * (i % 3)) / RATE
        wave = 0.3 * torch.sin(2000 * (1 + i % 2) * time) + 0.1 * torch.randn(len(time), generator=draw)
        content = {"wave": wave, "rate": RATE, "label": i % 2}
        out.append(Row(f"clip-{seed}-{i}", content, ("low", "high")[i % 2], split=split, source=f"clip-{i}"))
    return tuple(out)


HEARD = 16_000
"""Numbers a second of example sounds with a transcript."""


def transcriber_of(seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 2, width: int = 16, context: int = 64) -> Transcriber:
    """A small untrained model that hears a tenth of a second and writes, with a tokenizer of bytes."""
    import transformers

    numbers = {"layers": layers, "attention_heads": 2, "ffn_dim": 2 * width}
    sizes: dict[str, Any] = {f"{side}_{name}": number for side in ("encoder", "decoder") for name, number in numbers.items()}
    still = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    ids = {"bos_token_id": TOKENIZER.bos_token_id, "eos_token_id": TOKENIZER.eos_token_id, "decoder_start_token_id": TOKENIZER.bos_token_id}
    places = {"max_source_positions": 5, "max_target_positions": context, "num_mel_bins": 80, "vocab_size": len(TOKENIZER), "pad_token_id": None}
    config = transformers.WhisperConfig(**{**sizes, **still, **ids, **places, "d_model": width, "begin_suppress_tokens": None})
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.WhisperForConditionalGeneration(config)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    role = Transcriber(module.to(dtype).eval(), TOKENIZER, anatomy(module))
    role.requires_grad_(False)
    return role


@cache
def transcribers(seed: int = 0) -> Models:
    """A student and a teacher that write what they hear, in double precision, of other widths."""
    return Models({"student": transcriber_of(seed), "teacher": transcriber_of(seed + 1, layers=3, width=WIDE)})


@cache
def spoken(seed: int = 0, split: str = "train") -> Rows:
    """Noise of several lengths with what is said in it, of different lengths; pairs of one group."""
    draw, found = torch.Generator().manual_seed(seed), []
    for i in range(2 * GROUPS):
        wave = 0.1 * torch.randn(400 + 200 * (i % 6), generator=draw)
        answer = f" {WORDS[(3 * i + seed) % len(WORDS)]} {WORDS[(7 * i + seed) % len(WORDS)]}"
        content = {"wave": wave, "rate": HEARD, "prompt": "", "answer": answer}
        found.append(Row(f"spoken-{seed}-{i}", content, ("chosen", "rejected")[i % 2], f"pair-{i // 2}", split, f"clip-{i}"))
    return Rows((Part(tuple(found)),)) if split == "train" else Rows(held_out=tuple(found))


def pitch_tracker(seed: int = 0, dtype: torch.dtype = torch.float64, size: int = 1) -> Pitch:
    """A small untrained tracker of pitch, without its batch norms, which see one micro-batch at a time."""
    module = build({KEY: "crepe", "size": size, "seed": seed}, "example").to(dtype)
    for name, _ in list(module.named_children()):
        if name.endswith("_BN"):
            setattr(module, name, torch.nn.Identity())
    role = Pitch(module)
    role.requires_grad_(False)
    return role.eval()


@cache
def trackers(seed: int = 0) -> Models:
    """A student and a teacher that track pitch, in double precision."""
    return Models({"student": pitch_tracker(seed), "teacher": pitch_tracker(seed + 1)})


@cache
def pitched(seed: int = 0, num: int = 2 * GROUPS, split: str = "train") -> tuple[Row, ...]:
    """Tones in noise, of several lengths, with the pitch of each frame; the last frame has none."""
    draw, out = torch.Generator().manual_seed(seed), []
    for i in range(num):
        number = 200 + 160 * (i % 3)
        hertz = 100.0 * 2 ** (i % 5 / 3)
        wave = 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(number) / 16_000) + 0.05 * torch.randn(number, generator=draw)
        pitch = torch.full((number // 160 + 1,), hertz)
        pitch[-1] = 0
        content = {"wave": wave, "rate": 16_000, "pitch": pitch}
        out.append(Row(f"pitch-{seed}-{i}", content, str(i % 2), f"pair-{i // 2}", split, f"pitch-{i}"))
    return tuple(out)


@cache
def pair(seed: int = 0, width: int = WIDE) -> Models:
    """A student of two blocks, 16 wide, and a teacher of three, in double precision."""
    return Models({"student": family_of("llama", seed), "teacher": family_of("llama", seed + 1, layers=3, width=width)})


def ranker_of(seed: int = 0, dtype: torch.dtype = torch.float64, layers: int = 2, width: int = 16, pairs: bool = True) -> CrossEncoder | BiEncoder:
    """A small untrained cross-encoder, or bi-encoder, from its config, with a tokenizer of bytes."""
    import transformers

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(TOKENIZER)}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # else every pass differs
    more: dict[str, Any] = {**sizes, **still, "max_position_embeddings": 64, "pad_token_id": None, "id2label": {0: "relevance"}}
    config = transformers.BertConfig(**more)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.BertForSequenceClassification(config) if pairs else transformers.BertModel(config, add_pooling_layer=False)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    role = (CrossEncoder if pairs else BiEncoder)(module.to(dtype).eval(), TOKENIZER, anatomy(module))
    role.requires_grad_(False)
    return role


@cache
def rankers(seed: int = 0, pairs: bool = True) -> Models:
    """A student and a teacher that score, in double precision."""
    return Models({"student": ranker_of(seed, pairs=pairs), "teacher": ranker_of(seed + 1, layers=3, width=WIDE, pairs=pairs)})


@cache
def lists(seed: int = 0) -> Rows:
    """Lists of 2 to 5 candidates, each with a relevant one, and all that a run says of them."""
    found = []
    for i in range(GROUPS):
        for j in range(2 + (i + seed) % 4):
            text = f"{WORDS[(3 * i + 5 * j + seed) % len(WORDS)]} {WORDS[(7 * i + j + seed) % len(WORDS)]}"
            content = {"query": WORDS[(i + 1) % len(WORDS)], "text": text, "relevance": int(j == 1), "rank": j + 1, "score": 3.0 / (j + 1)}
            content |= {"query_id": f"q{i}", "document_id": f"d{i}.{j}", "judged": [1]}
            found.append(Row(f"{seed}-{i}-{j}", content, group=f"list-{i}", source=f"query-{i}"))
    return Rows((Part(tuple(found)),))


def sighted_of(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    layers: int = 2,
    width: int = 16,
    patch: int = 4,
    tower: int = 12,
    context: int = 64,
    channels: int = 1,
) -> VisionLanguage:
    """A small untrained vision-language model, with a tokenizer of bytes."""
    import transformers

    sizes = {"num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 2 * width}
    sees = {"hidden_size": tower, "image_size": SIDE, "patch_size": patch, "num_channels": channels}
    vision = transformers.CLIPVisionConfig(**sizes, **sees)  # type: ignore[arg-type]
    reads = {"hidden_size": width, "num_key_value_heads": 1, "vocab_size": len(TOKENIZER), "max_position_embeddings": context}
    text = transformers.LlamaConfig(**sizes, **reads)  # type: ignore[arg-type]
    text.pad_token_id = TOKENIZER.pad_token_id
    how: dict[str, Any] = {"image_token_index": 255, "vision_feature_layer": -1}  # a byte that no text has
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, **how)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = transformers.LlavaForConditionalGeneration(config)
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    module.preprocessing = Preprocessing((0.5,) * channels, (0.25,) * channels, (SIDE, SIDE))
    family = vision_family(module)
    assert family is not None
    role = VisionLanguage(module.to(dtype).eval(), TOKENIZER, anatomy(module), family)
    role.requires_grad_(False)
    return role


@cache
def sighted(seed: int = 0) -> Models:
    """A student and a teacher that see, in double precision, of other widths and as many visual tokens."""
    return Models({"student": sighted_of(seed), "teacher": sighted_of(seed + 1, layers=3, width=WIDE, tower=16)})


@cache
def described(seed: int = 0, split: str = "train") -> Rows:
    """Images with a question and its answer, of different lengths; pairs of answers to one question."""
    found = []
    for i, row in enumerate(pictures(seed, 2 * GROUPS, split)):
        answer = WORDS[(3 * i + seed) % len(WORDS)] + " " + WORDS[(7 * i + seed) % len(WORDS)]
        content = {**row.content, "prompt": f"{WORDS[i // 2]}<image>\n", "answer": answer}
        found.append(replace(row, key=f"seen-{seed}-{i}", content=content, tag=("chosen", "rejected")[i % 2], group=f"pair-{i // 2}"))
    return Rows((Part(tuple(found)),)) if split == "train" else Rows(held_out=tuple(found))


def denoiser(seed: int = 0, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2,), width: int = 16) -> Denoiser:
    """A small untrained denoiser of points in eight classes, along straight lines."""
    known = Parametrisation(noise=RectifiedFlow(), predicts="velocity", null_label=POINT_CLASSES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MLPDenoiser(known, shape, width, 2, POINT_CLASSES)
    role = Denoiser(module.to(dtype).eval())
    role.requires_grad_(False)
    return role


@cache
def denoisers(seed: int = 0) -> Models:
    """A student and a teacher that denoise, in double precision."""
    return Models({"student": denoiser(seed), "teacher": denoiser(seed + 1, width=WIDE)})


@cache
def points(seed: int = 0, num: int = GROUPS * 2, split: str = "train") -> Rows:
    """Points of eight classes, two of them of each group."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(num):
        content = {"clean": torch.randn(2, generator=draw), "label": i % POINT_CLASSES}
        found.append(Row(f"point-{seed}-{i}", content, str(i % 2), f"pair-{i // 2}", split, f"point-{i}"))
    return Rows((Part(tuple(found)),))


def heard(objectives: Sequence[Any], seed: int = 0, width: int = WIDE) -> tuple[Models, Rows]:
    """Models that can say what objectives ask for, and rows that they read."""
    asked = {name for objective in objectives for names in objective.needs.values() for name in names}
    if "patch" in {unit_of(name) for name in asked}:
        return sighted(seed), described(seed)
    if not asked.isdisjoint({"target_weight", "maskable"}):
        return fillers(seed, width), rows(seed)
    if asked & {*PREDICTIONS, *MADE}:
        return denoisers(seed), points(seed)
    if "pitch" in asked:
        return trackers(seed), Rows((Part(pitched(seed)),))
    if asked.isdisjoint({"score", "embedding"}):
        return pair(seed, width), rows(seed)
    return rankers(seed, pairs="embedding" not in asked), lists(seed)


def fresh(seed: int = 0, **sizes: int) -> Text:
    """A model of four blocks that may be changed: what surgeries get."""
    return copy.deepcopy(base_model(seed, tuple(sorted(sizes.items()))), {id(TOKENIZER): TOKENIZER})


def move(role: Role, seed: int = 0) -> None:
    """Moves all that may learn of a role a little, as training would."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, p in Models({"student": role}).trainable("student"):
            p += 0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype)


@cache
def base_model(seed: int, sizes: tuple[tuple[str, int], ...]) -> Text:
    return family_of("llama", seed, torch.float32, **{"layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64, **dict(sizes)})


@cache
def rows(seed: int = 0) -> Rows:
    """Pairs of answers to one prompt, of different lengths; the end of text, which is also the padding, stands between both and at the end."""
    found, mark = [], fingerprint(TOKENIZER)
    for i in range(GROUPS):
        for j, tag in enumerate(("chosen", "rejected")):
            answer = WORDS[(3 * i + 5 * j + seed) % len(WORDS)] + " " + WORDS[(7 * i + j + seed) % len(WORDS)]
            first, then = ([*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id] for text in (WORDS[i], answer))
            asked = [False] * len(first) + [True] * len(then)
            content = {"prompt": WORDS[i], "answer": answer, "ids": {mark: [*first, *then]}, "asked": {mark: asked}}
            found.append(Row(f"{seed}-{i}-{tag}", content, tag, f"pair-{i}"))
    return Rows((Part(tuple(found)),))


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars of transformers, for models that are saved and loaded in a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def laid_out(models: Models, layout: Layout) -> Iterator[None]:
    """All text roles in one layout."""
    before = {speaker: speaker.layout for name in models for speaker in models[name].speakers if isinstance(speaker, Text)}
    for speaker in before:
        speaker.layout = layout
    try:
        yield
    finally:
        for speaker, own in before.items():
            speaker.layout = own


def another(role: Role, seed: int) -> Role:
    """A further model of the kind of an example."""
    if isinstance(role, Denoiser):
        return denoiser(seed)
    made = family_of("llama", seed)
    return fills_blocks(made) if "masked_blocks" in role.reads_as else made


class Untold(AssertionError):
    """A window of which nothing could be told: its gradient is zero, or not finite."""


class Trial:
    """One turn on the tiny models: the gradients of its window, however the window is cut, laid out and shared out."""

    def __init__(
        self,
        seed: int = 0,
        teacher: Teacher | None = None,
        kept: Mapping[str, Any] | None = None,
        width: int = WIDE,
        models: Models | None = None,
        read: Rows | None = None,
        **turn: Any,
    ):
        roles = {o.role(seat) for o in turn["objective"] for seat in o.needs} - {"student", "teacher"}
        usual, some = heard(turn["objective"], seed, width)
        more = {name: another(usual["student"], seed + 2 + i) for i, name in enumerate(sorted(roles))}
        self.models = Models({**(models or usual), **more})
        self.world = World(self.models, read or (rows(seed) if models else some), (), teacher, kept or {}, Streams(seed))
        self.running = self.begin({"trains": turn["objective"][0].role(turn["objective"][0].teaches), **turn}).running[0]
        self.running.learned = [m if m is None else m.double() for m in self.running.learned]
        place = Place(self.models, self.world.streams)
        self.batch = prepare(made(self.running, self.world.rows, place), self.running, teacher, self.world.kept, place, (0, 0, 0))

    def begin(self, turn: Mapping[str, Any]) -> Loop:
        """A loop; where the objective needs an alignment, the first of the room that does."""
        if "align" in turn:
            return self.loop(turn)
        problem: Refused | None = None
        for align in (None, *members("align")):
            try:
                return self.loop({**turn, **({} if align is None else {"align": (find_align(align),)})})
            except Refused as error:
                if error.slug not in ("need", "role", "layer"):
                    raise
                problem = problem or error
        assert problem is not None
        raise NotClaimed(f"not for text models: {problem.expected}; {problem.got}")

    def loop(self, turn: Mapping[str, Any]) -> Loop:
        return Loop(Stage(steps=4, turn=(Turn(batch=GROUPS, **turn),)), self.world)  # type: ignore[call-arg]

    def gradients(self, micro: int = 1, layout: Layout = "packed", shares: int = 1) -> tuple[Tensor, list[Loss]]:
        """All gradients of the window as one vector, and sums and counts; each share of it knows the counts of all."""
        turn, named = self.running.turn, self.parameters()
        self.running.turn = Turn.model_validate({**dict(turn), "micro": micro})
        try:
            with self.models.turn(turn.trains, turn.only, turn.freeze, turn.through), laid_out(self.models, layout):
                losses = [window(self.running, self.models, share, 0, count(turn, self.batch)) for share in self.batch.cut(shares)]
            return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named]), added(losses)
        finally:
            self.running.turn = turn
            for _, parameter in named:
                parameter.grad = None

    @cached_property
    def whole(self) -> tuple[Tensor, list[Loss]]:
        """Those of the window in one piece: not zero, or else nothing could be told apart."""
        found = self.gradients()
        if not found[0].isfinite().all() or not found[0].any():
            raise Untold("the gradient of the whole window is zero or not finite")
        return found

    def parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Everything that learns."""
        turn = self.running.turn
        learned = [(f"learned.{i}.{n}", p) for i, m in enumerate(self.running.learned) if m is not None for n, p in m.named_parameters()]
        return [*self.models.trainable(turn.trains, turn.only, turn.freeze), *learned]


def find_align(kind: str) -> Any:
    from limbeck.align.base import Align

    return find(Align, kind).example()


def added(losses: Sequence[list[Loss]]) -> list[Loss]:
    """Losses of several shares, objective by objective."""
    return [Loss(sum(x.total for x in each), sum(x.count for x in each)) for each in zip(*losses, strict=True)]  # type: ignore[arg-type]
