"""Encoder-decoders of speech: what they hear is what transformers' extractor hears, and what they say is what Whisper says of each clip alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import processors

import limbeck
from limbeck.check.models import HEARD, TOKENIZER, Trial, added, find_align, move, quiet, spoken, transcriber_of, transcribers
from limbeck.component import find
from limbeck.errors import Failed, Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.base import Models, clone
from limbeck.model.log_mel import log_mel
from limbeck.model.opening import open_meta, open_pretrained
from limbeck.model.reference import Reference
from limbeck.model.role import as_role, without_weights
from limbeck.model.sampling import write
from limbeck.model.transcriber import Transcriber
from limbeck.objective.base import Objective
from limbeck.planning.cost import cost
from limbeck.signals import Row, View, dense
from limbeck.student.drop_blocks import DropBlocks
from limbeck.student.lora import Lora

RECIPES = Path(limbeck.__file__).parent / "recipes" / "models"


def opened(name: str) -> Transcriber:
    role = as_role(open_pretrained(f"config:{RECIPES / name}.json"))
    assert isinstance(role, Transcriber)
    return role


def row(number: int = 800, **content: Any) -> Row:
    wave = 0.1 * torch.randn(number, generator=torch.Generator().manual_seed(number))
    return Row(f"row-{number}", {"wave": wave, "rate": HEARD, "prompt": "", "answer": " go forward", **content})


@pytest.mark.parametrize(("bands", "seconds"), [(80, 1), (128, 1), (80, 30)])
def test_features_are_those_of_transformers_extractor(bands: int, seconds: int) -> None:
    waves = torch.randn(2, 16_000 * seconds, generator=torch.Generator().manual_seed(0))
    waves[1, 4000:] = 0  # silence, as behind a short clip
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
    theirs = extractor(list(waves.numpy()), sampling_rate=16_000, return_tensors="pt")["input_features"]
    ours = log_mel(waves, bands)
    assert ours.shape == (2, bands, 100 * seconds) == tuple(theirs.shape) and torch.allclose(ours, theirs, atol=2e-5)


def test_a_clip_among_longer_ones_says_what_it_says_alone_in_value_and_gradient() -> None:
    role, some = transcriber_of(), spoken().train[:6]
    names = ("logits", "hidden.0", "hidden.2", "target_logprob")
    role.requires_grad_(True)
    alone = [role.says(role.view([one]), names, {}) for one in some]
    together = role.says(role.view(some), names, {})
    for name in names:
        assert torch.allclose(dense(together[name]), torch.cat([dense(one[name]) for one in alone]), rtol=1e-6, atol=1e-6), name
    gradient = torch.autograd.grad(sum(one["target_logprob"].sum() for one in alone), role.module.model.encoder.conv1.weight)[0]  # type: ignore
    (other,) = torch.autograd.grad(together["target_logprob"].sum(), role.module.model.encoder.conv1.weight)  # type: ignore
    assert gradient.abs().max() > 1e-3 and torch.allclose(gradient, other, rtol=1e-4, atol=1e-6)


def test_targets_are_the_transcript_and_its_end_after_a_begin_that_is_given() -> None:
    role = transcriber_of()
    view = role.view([row(answer=" ab"), row(500, answer="")])
    begin, end = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    assert view.inputs["ids"].tolist() == [begin, 32, 97, 98, end, begin, end] and view.targets.tolist() == [1, 2, 3, 4, 6]
    assert view.ragged.tolist() == [5, 2] and view.instants is not None and view.instants.tolist() == [800, 500]
    assert role.says(view, ("label",), {})["label"].tolist() == [32, 97, 98, end, end]


def test_a_tokenizer_of_words_begins_and_ends_too_and_one_that_begins_with_nothing_is_refused() -> None:
    role = opened("tiny_whisper_4k")
    ids = role.view([row(answer=" yes")]).inputs["ids"].tolist()
    tokenizer = role.tokenizer
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[1:-1]) == " yes"
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    with pytest.raises(Refused, match="puts a begin before a text"):
        role.view([row(answer=" no")])


def whisper_tokenizer(end: int) -> Any:
    """One of Whisper's class: a vocabulary of bytes, filled up to the id of its end, and its marks behind it."""
    letters = sorted({chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))} | {chr(256 + i) for i in range(68)})
    vocab = {letter: i for i, letter in enumerate(letters)} | {f"filler{i}": i for i in range(len(letters), end)}
    made = transformers.WhisperTokenizerFast(vocab=vocab, merges=[])
    marks = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")
    made.add_special_tokens({"additional_special_tokens": list(marks)})
    return made


@pytest.mark.parametrize(("end", "prompt"), [(50_256, "<|startoftranscript|> <|notimestamps|>"), (50_257, None)])
def test_a_folder_of_transformers_reads_with_the_prompt_that_its_model_was_trained_with(tmp_path: Path, end: int, prompt: str | None) -> None:
    tokenizer = whisper_tokenizer(end)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    config = copy.deepcopy(transcriber_of().module.config)
    config.update(sizes)  # type: ignore[operator]
    with quiet():
        transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    role = as_role(open_pretrained(f"path:{tmp_path}"))
    ids = role.view([row(answer=" ab")]).inputs["ids"].tolist()
    said = " ".join(role.tokenizer.convert_ids_to_tokens(ids[:-4]))
    assert said == (prompt or "<|startoftranscript|> <|en|> <|transcribe|> <|notimestamps|>") and ids[-1] == end
    role.tokenizer.save_pretrained(tmp_path / "again")  # what it begins with is saved with it
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again").encode(" ab") == ids


def test_what_it_writes_is_the_best_token_each_time_as_the_whole_model_says_it() -> None:
    role, some = opened("tiny_whisper_4k"), spoken(3).train[:4]
    draw = torch.Generator().manual_seed(0)
    for name, p in role.module.named_parameters():  # else it says one word for all that it hears
        p.data += (2.0 if "encoder_attn" in name or "conv" in name else 0.3) * torch.randn(p.shape, generator=draw)
    begin, end = role.tokenizer.bos_token_id, role.tokenizer.eos_token_id
    expected = []
    for one in some:  # naively: a clip alone, no memory, the model of transformers itself
        made = [begin]
        with torch.no_grad():
            features = role.features(role.view([one]))
            while len(made) < 9 and made[-1] != end:
                made.append(int(role.module(input_features=features, decoder_input_ids=torch.tensor([made])).logits[0, -1].argmax()))
        expected.append(role.tokenizer.decode([i for i in made[1:] if i != end], skip_special_tokens=True).strip())
    assert role.transcribe(some, 8) == expected and len(set(expected)) > 1
    assert role.transcribe([]) == []


def test_writing_stops_at_the_end_of_each_clip_and_at_the_end_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    role = transcriber_of()
    assert all(len(text) <= role.context - 1 for text in role.transcribe(spoken().train[:2], 500))  # type: ignore[operator]
    written = iter([[97, 98], [TOKENIZER.eos_token_id, 99], [98, TOKENIZER.eos_token_id]])
    hot = lambda _: torch.nn.functional.one_hot(torch.tensor(next(written)), 258).float()  # noqa: E731
    monkeypatch.setattr(Transcriber, "head", property(lambda self: hot))
    assert role.transcribe(spoken().train[:2], 9) == ["a", "bc"]  # the first ends after its first token, the second after its second


FULL: list[tuple[str, dict[str, Any]]] = [("forward_kl", {}), ("cross_entropy", {}), ("hidden_cosine", {"layers": (-1,)}), ("jsd", {})]


@pytest.mark.parametrize(("kind", "fields"), FULL)
def test_objectives_of_language_models_hear_it_and_its_micro_batches_add_up(kind: str, fields: dict[str, Any]) -> None:
    objective = find(Objective, kind).model_validate(fields)
    trial = Trial(models=transcribers(), read=spoken(), objective=(objective,))
    whole, losses = trial.whole
    parts, others = trial.gradients(micro=3)
    assert torch.allclose(whole, parts, rtol=1e-5, atol=1e-8) and losses[0].count == others[0].count > 0
    assert losses[0].total.item() == pytest.approx(others[0].total.item(), rel=1e-6)


@pytest.mark.parametrize(("align", "kind"), [("byte_chunks", "chunk_likelihood"), ("by_position", "sorted_l1")])
def test_a_teacher_of_another_vocabulary_teaches_it(align: str, kind: str) -> None:
    models = Models({"student": opened("tiny_whisper"), "teacher": opened("tiny_whisper_4k")})
    objective = find(Objective, kind).example()
    trial = Trial(models=models, read=spoken(), align=(find_align(align),), objective=(objective,))
    whole, losses = trial.whole
    named = dict(zip([name for name, _ in trial.parameters()], whole.split([p.numel() for _, p in trial.parameters()]), strict=True))
    assert losses[0].count > 10 and named["model.encoder.conv1.weight"].abs().max() > 0 and named["model.decoder.embed_tokens.weight"].abs().max() > 0
    view = trial.batch.view("student")
    chunks = view.chunk_of
    assert chunks is not None and len(view.targets) != len(trial.batch.view("teacher").targets)
    if align == "byte_chunks":  # all that is said is spelled alike in the end, so every target but a lone end is in a chunk
        assert (chunks >= 0).all()


def test_only_the_decoder_learns_where_the_encoder_is_frozen() -> None:
    trial = Trial(models=transcribers(), read=spoken(), objective=(find(Objective, "cross_entropy").example(),), freeze=("model.encoder.*",))
    assert trial.whole[0].any() and all(name.startswith("model.decoder.") for name, _ in trial.parameters())
    assert added([trial.whole[1]])[0].count == trial.whole[1][0].count


def test_blocks_of_the_decoder_are_dropped_and_the_encoder_stays(tmp_path: Path) -> None:
    whole: Any = opened("tiny_whisper")
    role: Any = DropBlocks(drop=2)(clone(whole))
    config = role.module.config
    assert (role.num_layers, config.decoder_layers, config.encoder_layers, len(role.module.model.encoder.layers)) == (2, 2, 2, 2)
    assert whole.module.config.decoder_layers == 4 and len(whole.module.model.decoder.layers) == 4  # type: ignore
    kept = dict(whole.module.named_parameters())
    for name, p in role.module.named_parameters():
        assert torch.equal(p, kept[name.replace("decoder.layers.1.", "decoder.layers.3.")]), name  # spread: first and last
    by_hand = copy.deepcopy(whole)
    layers: Any = by_hand.module.model.decoder.layers  # type: ignore
    del layers[1:3]
    some = spoken().train[:3]
    with torch.no_grad():
        ours, theirs = (dense(one.says(one.view(some), ("logits",), {})["logits"]) for one in (role, by_hand))
    assert torch.equal(ours, theirs)
    assert role.transcribe(some, 5) == by_hand.transcribe(some, 5)  # the cache of keys and values is numbered anew
    move(role)
    with quiet():
        (check,) = Safetensors()(Parcel(role, tmp_path, {}, ()))
    assert check["class"] == "WhisperForConditionalGeneration" and "difference of a logit 0.0" in check["result"]
    again = as_role(open_pretrained(f"path:{tmp_path}"))
    assert isinstance(again, Transcriber) and again.num_layers == 2 and again.module.config.encoder_layers == 2  # type: ignore


def test_other_surgeries_are_refused() -> None:
    role = transcriber_of()
    role.refuse_change("student.surgery", (DropBlocks(drop=1),))
    for where, some in (("student.surgery", (Lora(),)), ("search", ())):
        with pytest.raises(Refused, match="drop_blocks"):
            role.refuse_change(where, some)


@pytest.mark.parametrize("dtype", ["as_trained", "bfloat16"])
def test_a_student_that_was_written_opens_in_transformers_and_says_the_same(tmp_path: Path, dtype: Any) -> None:
    role = opened("tiny_whisper_4k")
    with quiet():
        Safetensors(dtype=dtype)(Parcel(role, tmp_path, {}, ()))
        theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one = row(12_000, answer=" yes")
    features = extractor(one.content["wave"].numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    ids = torch.tensor([tokenizer.encode(" yes")])
    again = as_role(open_pretrained(f"path:{tmp_path}"))
    assert again.tokenizer.encode(" yes") == ids[0].tolist() and features.shape == (1, 80, 100)
    with torch.no_grad():
        logits = theirs(input_features=features, decoder_input_ids=ids).logits[0]
        said = dense(again.says(again.view([one]), ("logits",), {})["logits"])
    assert torch.allclose(said, logits, atol=1e-4)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("length", {"wave": torch.zeros(1601)}, "at most 0.1 s"),
    ("length", {"wave": torch.zeros(0)}, "0.00 s"),
    ("rate", {"rate": 8000}, "8000"),
    ("channels", {"wave": torch.zeros(100, 2)}, "one channel"),
    ("data", {"wave": None}, "waveform"),
    ("transcript", {"answer": None}, "transcript"),
    ("prompt", {"prompt": "What is said?"}, "before the transcript"),
    ("context", {"answer": "x" * 70}, "at most 64 tokens"),
]


@pytest.mark.parametrize(("slug", "content", "says"), BAD)
def test_a_row_that_cannot_be_heard_or_has_no_transcript_is_refused_by_name(slug: str, content: dict[str, Any], says: str) -> None:
    role = transcriber_of()  # its window is 0.1 s, its context 64
    bad = row(700, **{name: x for name, x in content.items()})
    with pytest.raises(Refused, match=says) as caught:
        role.view([row(), bad])
    assert caught.value.slug == slug and "row-700" in caught.value.where


def test_it_writes_nothing_after_text_alone() -> None:
    role = transcriber_of()
    assert "text" not in role.offers and not role.writes
    with pytest.raises(Refused, match="cannot write"):
        write(role, [[1, 2]], 4, 0.0, [0])
    text = View({"ids": torch.tensor([1, 2])}, torch.tensor([2]))
    with pytest.raises(Refused, match="a sound each"):
        role.says(text, ("logits",), {})


def test_a_folder_that_asks_for_other_features_is_refused(tmp_path: Path) -> None:
    role = opened("tiny_whisper")
    with quiet():
        Safetensors()(Parcel(role, tmp_path, {}, ()))
    file = tmp_path / "preprocessor_config.json"
    told = json.loads(file.read_text())
    assert told["chunk_length"] == 1 and told["feature_size"] == 80
    file.write_text(json.dumps({**told, "hop_length": 80}))
    with pytest.raises(Refused, match="160, as Whisper hears") as caught:
        open_pretrained(f"path:{tmp_path}")
    assert caught.value.slug == "value" and "hop_length" in caught.value.where


def test_what_a_row_costs_is_that_of_its_whole_window_and_of_its_tokens() -> None:
    role = transcriber_of(layers=3)
    m = len(role.view([row()]).inputs["ids"])
    frames, n, d, f, v, layers = 10, 5, 16, 32, len(TOKENIZER), 3  # 0.1 s; twice as many frames as positions of the encoder
    front = 2 * frames * 80 * d * 3 + 2 * n * d * d * 3
    encoder = layers * (4 * 2 * n * d * d + 2 * 2 * n * n * d + 2 * 2 * n * d * f)
    own = 4 * 2 * m * d * d + 2 * 2 * m * m * d
    across = 2 * 2 * m * d * d + 2 * 2 * n * d * d + 2 * 2 * m * n * d
    decoder = layers * (own + across + 2 * 2 * m * d * f) + 2 * m * d * v
    assert role.row_cost([row()])[0] == front + encoder + decoder  # type: ignore[index]
    assert cost(role, 128, [row()]).forward_flops * 128 == pytest.approx(front + encoder + decoder)  # a row is planned as 128 positions


def test_a_plan_needs_no_weights_and_no_tokenizer() -> None:
    module, config = open_meta(f"config:{RECIPES / 'tiny_whisper.json'}")
    role = without_weights(module, lambda: None, Reference.parse("config:x"))
    assert isinstance(role, Transcriber) and role.window == 16_000 and config.decoder_layers == 4
    assert cost(role).forward_flops > 0


def test_weights_that_are_missing_are_noticed(tmp_path: Path) -> None:
    role = opened("tiny_whisper")
    with quiet():
        Safetensors()(Parcel(role, tmp_path, {}, ()))
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_layers": 5}))
        with pytest.raises(Failed, match="weights"):
            open_pretrained(f"path:{tmp_path}")
