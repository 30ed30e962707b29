"""What does the loop cost over the same optimiser step in bare PyTorch? Interleaved pairs, checkpoints off; then a checkpoint by itself."""

import tempfile
import time
from pathlib import Path

import torch
from record import record, spread
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.data.base import Part, Rows
from limbeck.model.anatomy import anatomy
from limbeck.model.base import Models
from limbeck.model.text import Text
from limbeck.numerics import Streams
from limbeck.signals import Row
from limbeck.store import new_folder, save_state
from limbeck.teacher.live import Live
from limbeck.text.bytes_tokenizer import ByteTokenizer
from limbeck.text.tokens import fingerprint
from limbeck.train.loop import Loop, World
from limbeck.train.stage import Stage
from limbeck.train.window import order

ROWS, LENGTH, PAIRS, WARM = 8, 128, 10, 2


def model(layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=layers,
            num_attention_heads=6,
            num_key_value_heads=2,
            vocab_size=8192,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )


def main() -> None:
    torch.set_num_threads(2)
    tokenizer, mark = ByteTokenizer(), fingerprint(ByteTokenizer())
    ids = torch.randint(8192, ((PAIRS + WARM) * ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    rows = tuple(Row(str(i), {"text": "", "ids": {mark: tuple(x)}}) for i, x in enumerate(ids.tolist()))
    teacher, ours, bare = model(8, 1), model(6, 2), model(6, 2)
    models = Models({"student": Text(ours, tokenizer, anatomy(ours)), "teacher": Text(teacher, tokenizer, anatomy(teacher))})
    stage = Stage.model_validate(
        {"steps": PAIRS + WARM, "batch": ROWS, "objective": [{"kind": "forward_kl", "chunk": 1024}], "optimiser": {"lr": 1e-4}}
    )
    loop = Loop(stage, World(models, Rows((Part(rows),)), teacher=Live(model="given:teacher"), streams=Streams(0)))
    optimiser = torch.optim.AdamW(bare.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    drawn = loop.world.rows.draw(0, (PAIRS + WARM) * ROWS, order(Streams(0), 0, 0))
    windows = torch.tensor([row.content["ids"][mark] for row in drawn]).view(-1, ROWS, LENGTH)

    def plain(x: torch.Tensor) -> None:
        bare.train()
        with torch.no_grad():
            p = torch.log_softmax(teacher(input_ids=x, use_cache=False).logits[:, :-1].flatten(0, 1).float(), -1)
        q = torch.log_softmax(bare(input_ids=x, use_cache=False).logits[:, :-1].flatten(0, 1).float(), -1)
        optimiser.zero_grad(set_to_none=True)
        ((p.exp() * (p - q)).sum(-1).mean()).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimiser.step()

    ratios, ours_s, bare_s = [], [], []
    for i in range(PAIRS + WARM):
        times = {}
        for which in ("loop", "bare") if i % 2 else ("bare", "loop"):
            began = time.perf_counter()
            if which == "loop":
                loop.take(0, loop.running[0])
                loop.step += 1
            else:
                plain(windows[i])
            times[which] = time.perf_counter() - began
        if i >= WARM:
            ratios.append(times["loop"] / times["bare"])
            ours_s.append(times["loop"])
            bare_s.append(times["bare"])
    gap = max(float((a - b).abs().max()) for a, b in zip(ours.parameters(), bare.parameters(), strict=True))
    with tempfile.TemporaryDirectory() as place:
        saves = []
        for n in range(5):
            began = time.perf_counter()
            with new_folder(Path(place) / f"step-{n}") as folder:
                save_state(folder, "state", loop.state())
            saves.append(time.perf_counter() - began)
    found = {
        "ratio": spread(ratios),
        "loop_seconds": spread(ours_s),
        "bare_seconds": spread(bare_s),
        "largest_gap_of_a_weight": gap,
        "checkpoint_seconds": spread(saves),
    }
    print(found)
    record("loop_overhead", found)


if __name__ == "__main__":
    main()
