"""Blocks that another package brings: found by their kind, held by ours, and carried along with what they need."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.block.base import class_of, module_of
from limbeck.block.linear_attention import LinearAttention
from limbeck.check import check
from limbeck.check.models import fresh, quiet
from limbeck.check.surgery import logits
from limbeck.component import LOADED, find
from limbeck.errors import Refused
from limbeck.export.base import Parcel
from limbeck.export.safetensors import Safetensors
from limbeck.model.opening import open_pretrained
from limbeck.model.text import Text
from limbeck.student.base import Surgery

COMPONENT = """
    from typing import Any, Literal
    from limbeck.block._linear_mixer import AbstractLinearMixer

    class LinearAttention(AbstractLinearMixer):
        '''A state that fades by half in sixteen positions.

        Example:
            >>> LinearAttention().constant
            True

        References:
            Nobody.
        '''

        kind: Literal["mylab:linear_attention"] = "mylab:linear_attention"

        def spec(self, shape):
            return self.numbers(**self.attention(shape), half_life=16.0)
"""
MODULE = """
    from limbeck.block._linear_mixing import LinearMixing
    from ._decay import fading
    from mylab.blocks._decay import UNUSED  # noqa


    class LinearAttention(LinearMixing):
        def __init__(self, width, heads, key_dim, value_dim, half_life, bias=False, out_bias=False, norm_eps=None, layer_idx=0):
            super().__init__(width, heads, key_dim, value_dim, bias=bias, out_bias=out_bias, norm_eps=norm_eps, layer_idx=layer_idx)
            self.half_life = half_life

        def rates(self, q, k, v, x, rope):
            return q, k, v, fading(q[..., 0], self.half_life)

        def output(self, o, x):
            return self.o_proj(o.transpose(1, 2).flatten(2))
"""
DECAY = """
    import math
    import torch

    UNUSED = 0

    def fading(like, half_life):
        return torch.full_like(like, -math.log(2) / half_life)
"""


@pytest.fixture(autouse=True)
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What pip leaves of a package, whose block has the name of one of ours."""
    info, blocks = tmp_path / "site/mylab-1.0.dist-info", tmp_path / "site/mylab/blocks"
    info.mkdir(parents=True)
    blocks.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[limbeck]\nblock.linear_attention = mylab.blocks.linear_attention:LinearAttention\n")
    for name, text in {"linear_attention": COMPONENT, "_linear_attention": MODULE, "_decay": DECAY, "__init__": "", "../__init__": ""}.items():
        (blocks / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield blocks
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    for key in [key for key in LOADED if key[1].startswith("mylab:")]:
        del LOADED[key]


MIXER = {"kind": "mylab:linear_attention"}


def student(mixer: Any) -> Text:
    surgery: Any = find(Surgery, "linearize").model_validate({"mixer": mixer, "layers": [1, 2]})  # type: ignore[type-abstract]
    return surgery(fresh()).eval()


def test_it_stands_in_blocks_also_inside_of_another_and_ours_of_the_same_name_stays_ours() -> None:
    theirs, ours = student(MIXER), student({"kind": "linear_attention"})
    both = student({"kind": "gated_sum", "first": MIXER, "second": "linear_attention"})
    assert type(theirs.module.get_submodule("model.layers.1.self_attn")).__module__ == "mylab.blocks._linear_attention"
    inside: Any = both.module.get_submodule("model.layers.2.self_attn")
    assert [type(part).__module__ for part in (inside.first, inside.second)] == ["mylab.blocks._linear_attention", "limbeck.block._linear_attention"]
    assert type(ours.module.get_submodule("model.layers.1.self_attn")) is class_of(dict(LinearAttention())["kind"])
    assert not torch.equal(logits(theirs), logits(ours)) and logits(both).isfinite().all()
    assert theirs.module.config.layer_parts[1]["self_attn"]["kind"] == "mylab:linear_attention"  # type: ignore[union-attr, index]


@pytest.mark.parametrize("contract", ["documented", "described", "forms_agree", "goes_on"])
def test_the_contracts_of_the_room_hold_it_too(contract: str) -> None:
    student(MIXER)
    (row,) = check(LOADED["block", "mylab:linear_attention"], only=contract).rows
    assert row.status == "passed", row.message


def written(folder: Path, mixer: Any) -> Text:
    role = student(mixer)
    with quiet():
        Safetensors()(Parcel(role, folder, {}, ()))
    return role


INNER = {"kind": "gated_sum", "first": MIXER, "second": "linear_attention"}


@pytest.mark.parametrize("mixer", [MIXER, INNER], ids=["alone", "inside"])
def test_its_code_is_carried_along_and_limbeck_opens_it_with_what_is_installed(mixer: Any, tmp_path: Path) -> None:
    role = written(tmp_path / "out", mixer)
    code = {file.name: file.read_text() for file in (tmp_path / "out").glob("*.py")}
    assert {"_mylab_blocks_linear_attention.py", "_mylab_blocks_decay.py", "_linear_mixing.py"} <= code.keys()
    assert ("_linear_attention.py" in code) == (mixer is INNER)
    for name, text in code.items():
        assert "import limbeck" not in text and "from limbeck" not in text and "from mylab" not in text, name
        compile(text, name, "exec")
    again = open_pretrained(f"path:{tmp_path / 'out'}").module.eval()
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, role.module(ids).logits, rtol=1e-5, atol=1e-6)


WITHOUT = """
import sys, torch
from transformers import AutoModelForCausalLM
seen = torch.load(sys.argv[1] + "/seen.pt", weights_only=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert torch.allclose(model(seen["ids"]).logits, seen["logits"], atol=1e-5)
assert torch.equal(model.generate(seen["ids"], max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0), seen["written"])
assert "limbeck" not in sys.modules and "mylab" not in sys.modules
"""


@pytest.mark.slow
def test_a_process_with_neither_package_opens_and_decodes_it(tmp_path: Path) -> None:
    module: Any = written(tmp_path / "out", INNER).module
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        torch.save({"ids": ids, "logits": module(ids).logits, "written": module.generate(ids, **how)}, tmp_path / "out/seen.pt")
    outside = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "out")], capture_output=True, text=True, env=outside)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("line", ["from mylab.tools import help", "import mylab", "from limbeck.numerics import kl", "from .. import tools"])
def test_code_that_needs_more_of_its_package_is_refused_with_a_sentence(line: str, mylab: Path, tmp_path: Path) -> None:
    (mylab.parent / "tools.py").write_text("help = 0\n")
    (mylab / "_decay.py").write_text(f"{line}\n{textwrap.dedent(DECAY)}")
    with pytest.raises(Refused, match="the code of blocks is carried along") as caught:
        written(tmp_path / "out", MIXER)
    named = "mylab" if line in ("import mylab", "from .. import tools") else line.split()[1]
    assert (caught.value.slug, caught.value.got) == ("carried", f"an import of {named}")


def test_where_the_package_is_not_installed_the_model_is_refused_and_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "out", MIXER)
    del LOADED["block", "mylab:linear_attention"]
    monkeypatch.setattr("limbeck.component.entry_points", lambda **_: ())
    with pytest.raises(Refused, match="install mylab, which brings it") as caught:
        open_pretrained(f"path:{tmp_path / 'out'}")
    assert caught.value.got == "'mylab:linear_attention'"


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Refused, match="not mylab:linear_attention of these"):
        module_of({**MIXER, "width": 8}, 0)
