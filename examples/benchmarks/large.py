"""Training of the paper's language model with as many experts as memory holds: tokens/s and memory, predicted and real.

    python examples/benchmarks/large.py --experts 32 1024

Experts of 1M parameters (512 -> 1024 -> 512), 4 for each token, under FactoredAdam; everything else under Adam. The
arithmetic for a token is nearly the same for any number of experts: what grows is the gate. Each size runs in a process
of its own, whose peak of resident memory, less what it had before, is set beside what the cost model predicts.
"""

import multiprocessing
from pathlib import Path

import keras
import numpy as np
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.analysis import count, training_memory
from tf_moe.layers import SparseMoE
from tf_moe.models import language_model
from tf_moe.optimizers import FactoredAdam, optimizer_for


def peak_bytes() -> int:
    """The most memory that this program has had so far, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(experts: int, options) -> dict:
    before = peak_bytes()
    mixtures = [
        SparseMoE(experts, options.hidden, k=options.k, recompute=options.recompute) for _ in range(options.layers)
    ]
    model = language_model(options.vocabulary, mixtures, options.width)
    optimizer = optimizer_for(FactoredAdam(1e-3), keras.optimizers.Adam(1e-3))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng()

    def fresh():
        ids = rng.integers(1, options.vocabulary, (options.batch, options.steps + 1))
        return ids[:, :-1], ids[:, 1:]

    step = interleave({"step": model.train_on_batch}, fresh, options.repetitions)["step"]
    counts, tokens = count(model), options.batch * options.steps
    bank = sum(int(np.prod(w.shape)) for moe in mixtures for w in moe.experts.weights)
    memory = training_memory(model, tokens)
    return {
        "experts": experts,
        "in the banks (M)": bank / 1e6,
        "ops/timestep (M)": counts.multiply_adds / 1e6,
        "step, clock (ms)": step.wall,
        "tokens/s": round(1e3 * tokens / step.wall),
        **{f"{part} (GiB)": size / 2**30 for part, size in memory._asdict().items()},
        "in all, predicted (GiB)": memory.total / 2**30,
        "measured (GiB)": (peak_bytes() - before) / 2**30,
    }


def main(arguments=None):
    sizes = {"k": 4, "width": 512, "hidden": 1024, "vocabulary": 10_000, "batch": 128, "steps": 32}
    parser = make_parser(__doc__, experts=[32, 1024], layers=1, **sizes, repetitions=3)
    parser.add_argument("--recompute", action="store_true", help="hidden activations again in the backward pass")
    tiny = {"width": 16, "hidden": 32, "vocabulary": 50, "batch": 4, "steps": 8}
    options = parse(parser, arguments, experts=[8], **tiny, repetitions=1)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        print_table(pool.apply(measure, (experts, options)) for experts in options.experts)


if __name__ == "__main__":
    main()
