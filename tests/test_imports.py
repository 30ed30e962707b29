"""What may import what, what stays out of sight until it is needed, where tensors are made, and how long a file may be."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import limbeck
from limbeck.component import ROOMS as WITH_KINDS

SOURCE = Path(limbeck.__file__).parent
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
ROOMS = tuple(room for room in WITH_KINDS if room not in ("schedule", "noise", "block"))
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "component", "schedule", "noise", "guidance", "signals", "numerics", "addition", "chunked", "store", "endpoint", "text", "formats"),
    ("model", "block"),
    ROOMS,
    ("train", "search"),
    ("recipe", "roles", "reading", "planning", "examine", "conclude", "workspace", "tell", "searching", "job", "start", "significance", "claims",
     "given", "check", "terminal"),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((SOURCE / file).read_text(encoding="utf-8"))


def top(file: str) -> str:
    """The part of limbeck that a file belongs to: `objective`, `recipe`, ..."""
    return file.removesuffix(".py").split("/")[0]


def imported(module: ast.AST) -> Iterator[str]:
    """Names of limbeck's modules that a file imports, anywhere in it."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they lead"
            if node.module == "limbeck":
                yield from (f"limbeck.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("limbeck."):
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "limbeck")


def forbidden(file: str, module: ast.AST) -> list[str]:
    """Imports that lead up, or from one room into another."""
    own = top(file)
    found = []
    for name in imported(module):
        other = name.split(".")[1] if "." in name else ""
        if other not in LEVEL:
            found.append(f"{file} imports {name}, which is no part of limbeck")
        elif LEVEL[other] > LEVEL[own] or own in ROOMS and other in ROOMS and own != other:
            found.append(f"{file} imports {name}")
    return found


def test_every_file_belongs_to_a_layer() -> None:
    assert {top(file) for file in FILES} - {"__init__", "__main__"} == set(LEVEL)


@pytest.mark.parametrize("file", [file for file in FILES if file not in ("__init__.py", "__main__.py")])
def test_imports_point_one_way(file: str) -> None:
    assert forbidden(file, tree(file)) == []


@pytest.mark.parametrize(
    "file, line",
    [
        ("objective/x.py", "from limbeck.train.loop import Loop"),
        ("objective/x.py", "from limbeck.align.base import Align"),
        ("numerics.py", "import limbeck.model"),
        ("model/x.py", "from limbeck.data import base"),
        ("train/x.py", "def f():\n    from limbeck import recipe"),
        ("job.py", "from limbeck.cli import app"),
        ("data/x.py", "from limbeck import text, nowhere"),
    ],
)
def test_an_import_that_leads_up_or_sideways_is_noticed(file: str, line: str) -> None:
    assert forbidden(file, ast.parse(line))


@pytest.mark.parametrize(
    "file, line",
    [
        ("objective/x.py", "from limbeck.objective.base import Objective"),
        ("train/x.py", "from limbeck.align.base import Align"),
        ("cli/x.py", "from limbeck.recipe import load"),
        ("align/x.py", "import torch"),
    ],
)
def test_an_import_that_leads_down_is_none(file: str, line: str) -> None:
    assert forbidden(file, ast.parse(line)) == []


@pytest.mark.parametrize(
    "code, absent",
    [
        ("import limbeck; dir(limbeck)", ("torch", "transformers", "numpy", "pydantic", "yaml")),
        ("import limbeck.component, limbeck.text.document, limbeck.errors", ("torch", "transformers", "numpy")),
        ("import limbeck.recipe, limbeck.train.loop", ("transformers", "matplotlib", "datasets")),
    ],
    ids=["limbeck", "component", "recipe"],
)
def test_importing_stays_cheap(code: str, absent: tuple[str, ...]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(sorted(set({absent}) & set(sys.modules)))"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    with pytest.raises(AttributeError, match="limbeck has no recipee"):
        limbeck.recipee  # noqa: B018


# where tensors are made

CREATES = frozenset("zeros ones arange tensor as_tensor full empty eye linspace rand randn randint randperm normal bernoulli".split())
ON_CPU = {
    # what a file makes on the CPU, and why it may
    "check": "contracts make their examples on the CPU, from seeds, and move them as a run would",
    "data/base.py": "the order of rows: drawn on the CPU, so that no device changes it",
    "model/base.py": "a window is made on the CPU and moved whole",
    "model/plain.py": "rows as a user holds them: moved with the window",
    "model/text.py": "ids of rows: moved with the window",
    "given.py": "windows as a user's loader makes them: moved whole",
    "evaluate/_scoring.py": "tables of figures: they were moved to the CPU",
    "evaluate/_token_bytes.py": "bytes of each id of a tokenizer: looked up on the CPU",
    "evaluate/_topic_choice.py": "tables of figures, and a draw: on the CPU",
    "evaluate/agreement.py": "tables of figures: they were moved to the CPU",
    "evaluate/calibration.py": "tables of figures: they were moved to the CPU",
    "evaluate/speed.py": "seconds, and their spread",
    "evaluate/_memory.py": "a child process that measures the CPU",
    "examine.py": "a draw of rows: on the CPU, so that no device changes it",
    "job.py": "a draw of rows: on the CPU, so that no device changes it",
    "planning/probe.py": "measures how fast the CPU multiplies",
    "export/safetensors.py": "a probe: moved to the model before it is asked",
    "cli/chatting.py": "ids of a talk: moved to the model before it is asked",
    "train/window.py": "sums for the log: numbers of Python by then",
}


def without_device(module: ast.AST) -> list[int]:
    """Lines that make a tensor and do not say where."""
    return [
        node.lineno
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in CREATES
        and not any(word.arg in ("device", None) for word in node.keywords)
    ]


def test_every_tensor_is_made_on_a_device_that_is_named_or_for_a_reason_on_the_cpu() -> None:
    made = {file: without_device(tree(file)) for file in FILES}
    there = {file if file in ON_CPU else top(file) if top(file) in ON_CPU else "" for file, lines in made.items() if lines}
    assert {file: lines for file, lines in made.items() if lines and file not in ON_CPU and top(file) not in ON_CPU} == {}
    assert there == set(ON_CPU), "a reason that no file needs any more"


def test_nothing_asks_for_a_gpu_by_name() -> None:
    for file in FILES:
        calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        assert not [node.lineno for node in calls if node.func.attr == "cuda"], file  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "line, bites",
    [
        ("torch.zeros(3)", True),
        ("torch.randn(3, generator=g)", True),
        ("torch.zeros(3, device=x.device)", False),
        ("x.new_zeros(3)", False),
        ("torch.zeros_like(x)", False),
        ("torch.full((2,), -1, **like)", False),
    ],
)
def test_a_tensor_without_a_device_is_noticed(line: str, bites: bool) -> None:
    assert bool(without_device(ast.parse(line))) == bites


# how long

LIMITS = (
    (re.compile(r"train/loop\.py"), 400),
    (re.compile(r"job\.py"), 200),
    (re.compile(r"\w+/base\.py"), 200),
    (re.compile(rf"({'|'.join(WITH_KINDS)})/[a-z]\w*\.py"), 120),
)
MORE = {
    # a file that may be longer, how long, and why
    "job.py": (215, "all steps of a run, in their order, in one place"),
}


def code_lines(text: str) -> set[int]:
    """Lines that hold code: no comments, no docstrings."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    lines = {
        n for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in skip for n in range(token.start[0], token.end[0] + 1)
    }
    words = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return lines - {n for node in words for n in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_stay_within_their_budget(file: str) -> None:
    text = (SOURCE / file).read_text(encoding="utf-8")
    lines = code_lines(text)
    limit = next((most for pattern, most in LIMITS if pattern.fullmatch(file)), None)
    most = MORE.get(file, (limit,))[0]
    assert most is None or len(lines) <= most, f"{len(lines)} code lines, at most {most}: usually two ideas"
    assert file not in MORE or limit is not None and len(lines) > limit, "within its budget by now: take it out of MORE"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            num = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            assert num <= 60, f"{node.name} has {num} code lines, at most 60"


def test_comments_and_docstrings_are_no_code() -> None:
    assert code_lines('"""Words.\n\nMore."""\n\n# a remark\nx = """\n1\n"""  # code\n\n\ndef f():\n    """Words."""\n') == {6, 7, 8, 11}


# modalities

WORDS = "image audio speech video pixel picture dna genome protein vision spectrogram waveform voice diffusion molecule".split()
MODALITY = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})s?(?![a-z])", re.IGNORECASE)
NEUTRAL = [file for file in FILES if top(file) in ("train", "teacher", "planning") or file in ("job.py", "numerics.py", "recipe.py", "start.py")]


@pytest.mark.parametrize("file", NEUTRAL)
def test_what_runs_every_modality_names_none(file: str) -> None:
    assert [line for line in (SOURCE / file).read_text(encoding="utf-8").splitlines() if MODALITY.search(line)] == []


def test_a_modality_is_noticed() -> None:
    assert all(MODALITY.search(line) for line in ("num_images = 3", "the pixels of", "DNA")) and not MODALITY.search("imagine a revision")
