"""Do scores of parts put in alone foretell the divergence of models that are put together from many? SmolLM2-135M-Instruct, before anything
is taught. `python benchmarks/replace_one.py`, one thread.

Each of 30 blocks has three other mixers and four other MLPs; each is put in alone and measured: mean KL from the whole model, in nats a token,
on rows of the quickstart's training text. Then 15 models of many parts at once: of each, a share drawn evenly from 0 to a half of all places
is replaced by a variant drawn evenly. Spearman's correlation of the sum of scores with what is measured. Then the model that is selected
exactly, within the number of parameters that one MLP of half the inner width in every block leaves, beside that one; both also on other rows.
"""

import math
import random
import sys

import torch
from record import record
from scipy.stats import pearsonr, spearmanr

from limbeck.block.grouped_attention import GroupedAttention
from limbeck.block.linear_mlp import LinearMlp
from limbeck.block.narrow_mlp import NarrowMlp
from limbeck.block.no_mixer import NoMixer
from limbeck.block.no_mlp import NoMlp
from limbeck.block.self_value import SelfValue
from limbeck.examine import Calibration
from limbeck.numerics import Streams
from limbeck.planning import read
from limbeck.recipe import load
from limbeck.roles import Cast
from limbeck.search.blockwise import Shelf
from limbeck.search.costs import library
from limbeck.search.library import Workload
from limbeck.search.strategy import ReplaceOne, search
from limbeck.store import Cache

MIXERS = (GroupedAttention(kv_heads=1), SelfValue(), NoMixer())
MLPS = (NarrowMlp(inner=0.75), NarrowMlp(inner=0.5), LinearMlp(), NoMlp())
ASSEMBLIES, ROWS, HEARD, OTHER = 15, 1, 4, 4
HALF = 2
"""The MLP of half the inner width, among the MLPs."""


def main() -> None:
    torch.set_num_threads(1)
    recipe = load("quickstart")
    cast = Cast(recipe, Cache())
    rows = read(recipe, cast, ".").draw(0, ROWS + HEARD + OTHER, Streams(0))
    whole = cast.originals["teacher"]
    shelf = Shelf(whole, MIXERS, MLPS, rows[ROWS : ROWS + HEARD], apart=True)
    costs, nothing = library(shelf), (0,) * len(shelf.sizes)
    uniform = tuple(HALF if i % 2 else 0 for i in range(len(nothing)))
    most = costs.cost(uniform, "parameters", Workload())
    measure = shelf.scorer(Calibration(whole, rows[:ROWS]))
    strategy, done = ReplaceOne(costs, nothing, {"parameters": most}), 0

    def told(choice):
        nonlocal done
        done += 1
        value = measure(choice)
        print(done, [(i, n) for i, n in enumerate(choice) if n][:3], f"{value:.5f}", file=sys.stderr, flush=True)
        return value

    best = search(strategy, told)
    assert best is not None
    draw, pairs = random.Random(0), []
    for _ in range(ASSEMBLIES):
        share = draw.uniform(0, 0.5)
        choice = tuple(draw.randrange(1, size) if draw.random() < share else 0 for size in shelf.sizes)
        pairs.append({"replaced": sum(map(bool, choice)), "foretold": strategy.foretold(choice), "measured": told(choice)})
        print(pairs[-1], file=sys.stderr, flush=True)
    foretold, true = ([pair[name] for pair in pairs] for name in ("foretold", "measured"))
    rank = spearmanr(foretold, true)
    other = shelf.scorer(Calibration(whole, rows[ROWS + HEARD :]))
    found = {
        "targets": {
            name: sum(len(whole.view([row]).targets) for row in some) for name, some in (("measured", rows[:ROWS]), ("other", rows[ROWS + HEARD :]))
        },
        "measurements": len(strategy.told),
        "scores": [{variant.name: round(variant.score, 6) for variant in variants} for variants in strategy.scored().layers],
        "assemblies": pairs,
        "spearman": {"correlation": float(rank.statistic), "p": float(rank.pvalue)},
        "pearson_of_logs": float(pearsonr([math.log(x) for x in foretold], [math.log(x) for x in true]).statistic),
        "parameters": {"whole": costs.cost(nothing, "parameters", Workload()), "limit": most},
        "selected": {
            "kl": strategy.told[best],
            "kl_on_other_rows": other(best),
            "foretold": strategy.foretold(best),
            "parts": [v.name for v in costs.chosen(best)],
        },
        "uniform": {"kl": told(uniform), "kl_on_other_rows": other(uniform), "foretold": strategy.foretold(uniform)},
    }
    record("replace_one", found)


if __name__ == "__main__":
    main()
