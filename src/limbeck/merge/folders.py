"""Merges model folders without a run, tensor by tensor."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import Refused
from limbeck.merge.base import Merge, merge, refuse
from limbeck.model.folder import WEIGHTS, check_folder, check_index, inside, is_hybrid
from limbeck.model.headers import corrupt, quoted, read_json
from limbeck.model.packed import scheme_of
from limbeck.store import disk, later_tensors, new_folder, save_tensors, write_json

INDEX = WEIGHTS + ".index.json"
BESIDE = (".json", ".txt", ".model", ".jinja")
"""Endings of what belongs to a model beside its weights: configuration, tokenizer, chat template."""


def merge_folders(how: Merge, folders: Sequence[Path | str], base: Path | str | None, out: Path | str) -> None:
    """Writes a model folder with the weights of several merged; configuration, tokenizer and shards are those of the first.

    Args:
        how: the merge; its `of` is not looked at.
        folders: of safetensors in one file or in shards, in the order in which they are merged.
        base: the model that all were trained from, where the merge needs it.
        out: a free name, or a folder that this has written before: it is whole or absent.

    Raises:
        Refused: `merge` where the merge does not take so many, or lacks its base; `tokenizer` where ids stand for other tokens; others for what
            is no model folder.
        Failed: `merge`, for the first tensor whose shape or name is not that in the first folder; `corrupt`; `space`.
    """
    paths = [Path(folder) for folder in (*folders, *([] if base is None else [base]))]
    shards = [files_of(path) for path in paths]
    states = [{name: later for file, names in one.items() for name, later in later_tensors(file).items() if name in names} for one in shards]
    num = len(folders)
    if any(path.resolve() == Path(out).resolve() for path in paths):
        raise Refused("exists", str(out), "a folder that is not merged itself", "one of those that are", "choose another name")
    before = None if base is None else states[num]
    refuse(how, [str(path) for path in paths[:num]], states[:num], before, str(out))
    for path in paths[1:]:
        same_vocabulary(paths[0], path)
    merged = merge(how, states[:num], before)
    size = sum(later.like.numel() * later.like.element_size() for later in merged.values())
    places = {file.relative_to(paths[0]).as_posix(): names for file, names in shards[0].items()}
    carried = is_hybrid(read_json(inside(paths[0], "config.json")))
    with new_folder(out, size) as folder:
        for place, names in places.items():
            save_tensors(inside(folder, place), {name: merged[name] for name in names})
        if list(places) != [WEIGHTS]:
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": {name: place for place in places for name in places[place]}})
        for file in sorted(paths[0].iterdir()):
            if file.suffix in (*BESIDE, *((".py",) if carried else ())) and file.is_file() and file.name not in (INDEX, "manifest.json"):
                with disk(folder / file.name):
                    shutil.copyfile(inside(paths[0], file.name), folder / file.name)


def files_of(path: Path) -> dict[Path, list[str]]:
    """The files of weights of a model folder that is checked, with the names of their tensors."""
    checked = check_folder(path, str(path))
    if scheme_of(checked.config) is not None:
        raise Refused("packed", str(path), "weights as numbers", "codes and scales", "merge the models first, and quantise what comes of it")
    single = (path / WEIGHTS).is_file()
    index = dict.fromkeys(checked.stored, inside(path, WEIGHTS)) if single else check_index(path)
    files: dict[Path, list[str]] = {}
    for name, file in sorted(index.items(), key=lambda item: (item[1], item[0])):
        files.setdefault(file, []).append(name)
    return files


def same_vocabulary(first: Path, other: Path) -> None:
    """Refuses tokenizers in which an id stands for another token; where a folder has none to compare, shapes must do."""
    a, b = (entries(inside(path, "tokenizer.json")) if (path / "tokenizer.json").is_file() else None for path in (first, other))
    if a is None or b is None or a == b:
        return
    unlike = min((a.items() ^ b.items()), key=lambda item: (item[1], item[0]))
    told = [next((token for token, id_ in x.items() if id_ == unlike[1]), None) for x in (a, b)]
    raise Refused(
        "tokenizer",
        str(other / "tokenizer.json"),
        f"the vocabulary of {first}: {unlike[1]} is {quoted(told[0])}",
        f"{unlike[1]} is {quoted(told[1])}",
        "merge models of one tokenizer",
    )


def entries(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer file, with the tokens that were added."""
    plain: Any = read_json(path)
    try:
        vocab = plain["model"]["vocab"]
        pieces = vocab.items() if isinstance(vocab, dict) else ((piece, i) for i, (piece, _) in enumerate(vocab))
        return {str(token): int(i) for token, i in (*pieces, *((one["content"], one["id"]) for one in plain.get("added_tokens") or ()))}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise corrupt(path, "a tokenizer with a vocabulary", ascii(str(error))[:60]) from error
