"""What the README shows is run, or at least read by what would run it."""

import re
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.component import ROOMS, members
from limbeck.recipe import SHIPPED, load
from limbeck.text import document

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)


def test_the_yaml_of_the_readme_is_a_recipe():
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    recipe = load(document.load(text)[0])
    assert [o.kind for o in recipe.train[0].turn[0].objective] == ["forward_kl", "hidden_cosine"]


def test_the_python_recipe_of_the_readme_is_the_yaml_one(monkeypatch):
    planned = []
    monkeypatch.setattr(
        limbeck.planning if hasattr(limbeck, "planning") else __import__("limbeck.planning").planning,
        "plan",
        lambda recipe, **_: planned.append(recipe),
    )
    code = next(text for kind, text in BLOCKS if kind == "python" and "lk.Recipe" in text)
    exec(compile(code, "README", "exec"), {})  # our own text, not a stranger's
    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    assert planned == [load(document.load(text)[0])]


def test_the_digits_of_the_readme_are_learnt(capsys):
    torch.manual_seed(0)
    code = next(text for kind, text in BLOCKS if kind == "python" and "load_digits" in text)
    exec(compile(code, "README", "exec"), {})
    teacher, student = (float(re.search(r"tensor\((.*?)\)", line)[1]) for line in capsys.readouterr().out.strip().splitlines())
    assert teacher > 0.85 and student > 0.75


@pytest.mark.parametrize("room", [r for r in ROOMS if r not in ("schedule",)])
def test_the_readme_names_every_member_of_a_room(room):
    assert [kind for kind in members(room) if kind not in README] == []


def test_the_readme_names_no_member_that_is_not_there():
    table = README.partition("| room | members |")[2].partition("\n\n")[0]
    objectives = re.search(r"\| objective \| (.*?);", table)[1].split(", ")
    assert objectives == sorted(objectives, key=objectives.index) and set(objectives) == set(members("objective"))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_and_its_toy_load(path):
    whole, toy = load(path), load(path, toy=True)
    changed = whole.toy.keys()
    sizes = r"steps|boundaries|length|shortest|batch|minutes|model|path|data|rows|keep|drop|num$|evaluate|^teacher$|start$"
    assert all(re.search(sizes, key) for key in changed), (
        "a toy changes sizes, steps, data and models only"
    )
    assert [[o.kind for t in s.turn for o in t.objective] for s in whole.train] == [[o.kind for t in s.turn for o in t.objective] for s in toy.train]
