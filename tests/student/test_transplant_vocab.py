"""Another tokenizer for a model that is there: rows that are taken over, rows that are means, rows that are drawn."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import limbeck
from limbeck.check.models import quiet
from limbeck.errors import Refused
from limbeck.model.opening import open_pretrained
from limbeck.model.role import as_role
from limbeck.recipe import load
from limbeck.signals import Row
from limbeck.start import run
from limbeck.store import read_json
from limbeck.student._vocabulary import carried, cut, sources
from limbeck.student.lora import Lora
from limbeck.student.transplant_vocab import TransplantVocab
from limbeck.text.bytes_of import Spelling, exact
from limbeck.text.tokens import encoded
from toy import FEW, TINY, at_home, toy, words
from two_tokenizers import bpe

__all__ = ["at_home"]
STOCK = """
import sys, torch, transformers
folder = sys.argv[1]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
seen = torch.load(folder + "/seen.pt", weights_only=True)
ids = torch.tensor([tokenizer.encode(seen["text"])])
assert ids.tolist() == seen["ids"].tolist(), ids
assert torch.equal(model.eval()(ids).logits, seen["logits"])
"""
OURS = """
import sys, torch
from limbeck.model.opening import open_pretrained
opened = open_pretrained("path:" + sys.argv[1])
seen = torch.load(sys.argv[1] + "/seen.pt", weights_only=True)
ids = torch.tensor([opened.tokenizer.encode(seen["text"])])
assert ids.tolist() == seen["ids"].tolist(), ids
assert torch.equal(opened.module(ids).logits, seen["logits"])
"""
TEXT = "The lambda expression."


def tables(role: Any) -> dict[str, torch.Tensor]:
    return {part: role.anatomy.weight(role.module, part).clone() for part in ("embedding", "head")}


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_those_of_the_bytes_that_they_spell(tiny: Any, tied: bool) -> None:
    role = tiny("llama", tie_word_embeddings=tied)
    before = tables(role)
    after = TransplantVocab(tokenizer="python_4k")(role)
    spelled = exact(after.tokenizer, "here")
    for part, rows in tables(after).items():
        assert rows.shape == (4096, 64)
        for i in (*range(2, 300), 1000, 4095):
            torch.testing.assert_close(rows[i], before[part][list(spelled.bytes[i])].mean(0))
        assert torch.equal(rows[spelled.bytes.index(b"q")], before[part][ord("q")])
        assert torch.equal(rows[0], before[part][256]) and torch.equal(rows[1], before[part][257])  # begin and end, by their purpose
    assert (after.module.lm_head.weight is after.module.model.embed_tokens.weight) == tied
    config = after.module.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (4096, 0, 1, None)
    assert not hasattr(config, "limbeck_tokenizer")


def test_to_its_own_tokenizer_nothing_changes(tiny: Any, tmp_path: Path) -> None:
    role = TransplantVocab(tokenizer="python_4k")(tiny("qwen3"))
    role.module.save_pretrained(tmp_path / "own")
    role.tokenizer.save_pretrained(tmp_path / "own")
    before, config = copy.deepcopy(role.module.state_dict()), copy.deepcopy(role.module.config.to_dict())
    for name in ("python_4k", f"path:{tmp_path / 'own'}"):
        after = TransplantVocab(tokenizer=name, seed=7)(role)
        assert all(torch.equal(x, before[name]) for name, x in after.module.state_dict().items())
        assert after.module.config.to_dict() == config


def test_there_and_back_again_whatever_is_one_byte_long(tiny: Any) -> None:
    before = tables(tiny("llama"))
    after = tables(TransplantVocab(tokenizer="bytes")(TransplantVocab(tokenizer="python_4k")(tiny("llama"))))
    for part, rows in after.items():
        assert torch.equal(rows, before[part])


def test_what_is_no_text_by_itself_is_cut_from_the_left() -> None:
    old = bpe(pieces=("he", "ll"))
    spelled = exact(old, "here")
    spells = {b: i for i, b in enumerate(spelled.bytes) if b}
    assert cut(b"hello", spells, spelled, old) == tuple(encoded("hello", old))
    assert cut("é".encode()[:1] + b"ll", spells, spelled, old) == (spells["é".encode()[:1]], spells[b"ll"])
    assert cut(b"x\xff", {b"x": 3}, spelled, old) == ()  # nothing spells the second byte


def test_what_nothing_is_known_of_is_drawn_like_the_others() -> None:
    old = Spelling((b"a", b"b", b""), {2: "end"}, False)
    new = Spelling((b"", b"b", b"", b"", b""), {0: "<tool>", 2: "begin", 3: "end"}, False)
    of = sources(new, old, None, 5)
    assert of == [(), (1,), (2,), (2,), ()]  # a begin of a vocabulary that has none is its end
    rows = torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [3.0], [2.0]]) + 5
    made = carried(rows, of, 3, torch.Generator().manual_seed(1))
    assert torch.equal(made[1], rows[1]) and torch.equal(made[2], rows[2]) and torch.equal(made[3], rows[2])
    z = (made[[0, 4]] - rows.mean(0)) / rows.std(0)
    assert abs(float(z.mean())) < 0.02 and abs(float(z.std()) - 1) < 0.02 and not torch.equal(made[0], made[4])
    assert torch.equal(carried(rows, of, 3, torch.Generator().manual_seed(1)), made)
    assert not torch.equal(carried(rows, of, 3, torch.Generator().manual_seed(2))[0], made[0])


@pytest.mark.parametrize("name, script", [("python_4k", STOCK), ("bytes", OURS)])
def test_the_saved_folder_opens_in_another_process_with_its_new_tokenizer(tiny: Any, tmp_path: Path, name: str, script: str) -> None:
    start = tiny("gemma3_text", tie_word_embeddings=True)
    role = TransplantVocab(tokenizer=name)(start if name != "bytes" else TransplantVocab(tokenizer="python_4k")(start))
    with quiet():
        role.module.save_pretrained(tmp_path)
    role.tokenizer.save_pretrained(str(tmp_path))
    ids = role.view([Row("a", {"text": TEXT})]).inputs["ids"][None]
    with torch.no_grad():
        torch.save({"text": TEXT, "ids": ids, "logits": role.module(ids).logits}, tmp_path / "seen.pt")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("family, got", [("bert", "BertOnlyMLMHead"), ("llama", "adapters")])
def test_heads_that_are_more_than_a_matrix_and_adapters_are_refused(tiny: Any, family: str, got: str) -> None:
    role = tiny(family)
    if family == "llama":
        role = Lora()(role)
    with pytest.raises(Refused) as caught:
        TransplantVocab(tokenizer="python_4k")(role)
    assert got in caught.value.got


def other_teacher(folder: Path) -> None:
    """A teacher that reads with python_4k, in a folder."""
    role = TransplantVocab(tokenizer="python_4k")(as_role(open_pretrained(f"config:{TINY}")))
    with quiet():
        role.module.save_pretrained(folder)
    role.tokenizer.save_pretrained(str(folder))


def test_a_student_with_the_teachers_tokenizer_is_taught_token_by_token(tmp_path: Path) -> None:
    """Rows are cut by what the student reads in the end; files are looked for beside the recipe."""
    other_teacher(tmp_path / "teacher")
    surgery = [{"kind": "transplant_vocab", "tokenizer": "path:teacher"}]
    student = {"start": f"config:{TINY}", "surgery": surgery}
    recipe = toy(tmp_path, {"objective": ["forward_kl"]}, teacher="path:teacher", student=student, export=["safetensors"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert limbeck.plan(str(tmp_path / "mine.yaml"), probe=False).roles["student"][1].parameters > 4096 * 64
    done = run(str(tmp_path / "mine.yaml"), runs=tmp_path / "runs")
    assert read_json(done.path / "student" / "config.json")["vocab_size"] == 4096 and (done.path / "student" / "tokenizer.json").is_file()
    assert done.load().lm_head.weight.shape[0] == 4096
    without = {**recipe, "student": {"start": f"config:{TINY}"}}
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(without))
    with pytest.raises(Refused) as caught:
        run(str(tmp_path / "without.yaml"), runs=tmp_path / "runs")
    assert caught.value.slug == "tokenizer"


def test_across_tokenizers_it_takes_an_alignment(tmp_path: Path) -> None:
    student = {"start": "teacher", "surgery": [{"kind": "transplant_vocab", "tokenizer": "python_4k"}]}
    with pytest.raises(Refused) as caught:
        run(toy(tmp_path, {"objective": ["forward_kl"]}, student=student), runs=tmp_path)
    assert caught.value.slug == "tokenizer"
    alone = run(toy(tmp_path, {"objective": ["cross_entropy"]}, student=student, evaluate=["perplexity"]), name="alone", runs=tmp_path)
    assert alone.summary["closeness"] == "aligned_bytes"  # nobody hears the teacher: text alone needs none
    written = [{**FEW, "path": str(words(tmp_path))}, {"kind": "rollouts", "by": {"taught": "teacher"}, "prompt_tokens": 4, "new_tokens": 4}]
    with pytest.raises(Refused) as caught:
        run(toy(tmp_path, {"objective": ["cross_entropy"], "data": written}, student=student), runs=tmp_path)
    assert caught.value.slug == "tokenizer"  # what it writes is ids of its own
    done = run(toy(tmp_path, {"objective": ["chunk_likelihood"], "align": ["byte_chunks"]}, student=student, evaluate=["perplexity"]), runs=tmp_path)
    assert done.summary["student"]["bits_per_byte"] > 0
    stage = {"objective": ["chunk_likelihood"], "align": ["byte_chunks"], "surgery": student["surgery"]}
    with pytest.raises(Refused) as caught:
        load(toy(tmp_path, stage))
    assert "tokenizer" in caught.value.expected
