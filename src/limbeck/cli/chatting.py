"""chat: teacher and student answer side by side."""

import sys
import time
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.examine import continued, differences
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.store import Cache
from limbeck.terminal import console
from limbeck.text.show import duration, visible
from limbeck.workspace import base_of

SYSTEM = "/system "


def chat(folder: Path, new_tokens: int) -> None:
    """Reads lines from stdin until it ends or says /quit; `/system TEXT` sets the system message, `/new` forgets the talk."""
    from limbeck.model.opening import open_pretrained
    from limbeck.model.role import as_role

    if not (folder / "student" / "config.json").is_file():
        raise Refused("run", str(folder), "an exported student", "none", f"limbeck resume {folder.name}")
    recipe = load(folder / "recipe.yaml")
    if recipe.teacher is None:
        raise Refused("run", str(folder), "a run with a teacher", "none", "limbeck show " + folder.name)
    teacher = Cast(recipe, Cache(), base_of(folder)).originals["teacher"]
    student = as_role(open_pretrained(f"path:{folder / 'student'}", cache=Cache()))
    if student.tokenizer is None or "text" not in student.offers:
        raise Refused("run", str(folder), "a student that answers text alone", "one that does not", f"limbeck evaluate {folder.name}")
    roles = {"teacher": teacher, "student": student} if teacher.at_hand else {"student": student}
    out, messages = console(), []
    if not teacher.at_hand:
        out.print("the teacher is not at hand: the student answers alone")
    out.print(f"teacher {', '.join(recipe.teacher.references)} │ student {folder.name} · greedy · /system TEXT  /new  /quit")
    for line in sys.stdin:
        line = line.strip()
        if line == "/quit":
            break
        if line == "/new" or not line:
            messages = [m for m in messages if m["role"] == "system"]
            continue
        if line.startswith(SYSTEM):
            messages = [{"role": "system", "content": line.removeprefix(SYSTEM)}]
            continue
        messages.append({"role": "user", "content": line})
        out.print(f"you ▸ {visible(line, 2000)}")
        answers = {}
        for name, role in roles.items():
            ids = prompt(role.tokenizer, messages).to(next(role.parameters()).device)
            began = time.perf_counter()
            made = continued(role, ids, new_tokens)
            answers[name] = role.tokenizer.decode(made.tolist(), skip_special_tokens=True)
            compared = name == "student" and teacher.at_hand
            share = f" · {differences(teacher, role.tokenizer, ids, made)['agreement']:.0%} agreement" if compared else ""
            out.print(f"  {name} · {duration(time.perf_counter() - began)}{share}\n  {visible(answers[name], 4000, 100)}")
        messages.append({"role": "assistant", "content": answers["student"]})


def prompt(tokenizer: Any, messages: list[dict[str, str]]) -> Any:
    """Ids of a talk so far, by the tokenizer's own template, or as plain lines where it has none."""
    import torch

    if getattr(tokenizer, "chat_template", None):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    else:
        ids = tokenizer.encode("\n".join(m["content"] for m in messages) + "\n")
    return torch.tensor(ids)
