"""Trains the paper's language model, and a dense one of equal multiply-adds a time step, on real text.

Without arguments the text is the Python standard library of this machine, split by file; with `--data`, a directory
of text files, one sentence a line (.gz and .xz too): WikiText, the One Billion Word benchmark, or your own.

    python examples/language_model.py
    python examples/language_model.py --data wikitext2 --experts 16x16 --k 2x2

It prints a table and writes both models, the history, the table and two plots to `--output`.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import keras
from common import Stopwatch, format_table, make_vocabulary, over_zero, positive, share, warmup_cosine

import tf_moe
from tf_moe.analysis import count, measure_usage
from tf_moe.layers import SparseMoE
from tf_moe.models import Perplexity, dense_twin, language_model
from tf_moe.text import Corpus, Vocabulary, contiguous_batches


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "runs/language_model, with --smoke runs/language_model_smoke"
    parser.add_argument("--output", metavar="DIR", type=Path, help=f"default: {default}")
    # With expert choice a word's experts depend on the words that come after it: its perplexity would be none. Hash
    # routing needs ids, which this model does not pass down.
    possible = sorted(set(tf_moe.gates.GATES) - {"expert_choice", "hash"})
    parser.add_argument("--gate", default="noisy_top_k", choices=possible, help="default: %(default)s")
    add_model_arguments(parser)
    options = complete(parser.parse_args(arguments))
    # A tiny run does not write over a real one.
    options.output = options.output or Path("runs/language_model_smoke" if options.smoke else "runs/language_model")
    return options


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Text, sizes and training, which `distributed.py` shares."""
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--data", metavar="DIR", help="directory of text files (default: the standard library)")
    parser.add_argument(
        "--experts", default=64, type=one_or_two, help="N, or AxB for two levels (default: %(default)s)"
    )
    parser.add_argument("--k", type=one_or_two, help="experts for each token, N or AxB (default: 4, or 2x2)")
    parser.add_argument("--width", default=128, help="of embedding and LSTMs (default: %(default)s)", **number)
    parser.add_argument("--hidden", default=32, help="of each expert (default: %(default)s)", **number)
    parser.add_argument("--vocabulary", default=4096, help="tokens (default: %(default)s)", **number)
    parser.add_argument(
        "--epochs", default=0.7, type=over_zero, help="passes over the training text (default: %(default)s)"
    )
    parser.add_argument("--batch", default=16, help="windows in a batch (default: %(default)s)", **number)
    parser.add_argument("--steps", default=64, help="time steps of a window (default: %(default)s)", **number)
    parser.add_argument("--learning-rate", default=3e-3, type=over_zero, help="highest, of Adam (default: %(default)s)")
    parser.add_argument("--dropout", default=0.1, type=share, help="default: %(default)s")
    parser.add_argument("--seed", default=0, type=int, help="of weights, noise and order (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that all works")


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in `k`, whose default depends on the experts, and the sizes of a smoke run."""
    if options.k is None:
        options.k = (2, 2) if isinstance(options.experts, tuple) else min(4, options.experts)
    if options.smoke:
        options.width, options.hidden, options.vocabulary = 32, 64, min(options.vocabulary, 1000)
    return options


def one_or_two(text: str) -> int | tuple[int, int]:
    """`256` -> 256, `16x256` -> (16, 256)."""
    parts = tuple(positive(part) for part in text.split("x"))
    if len(parts) > 2:
        raise argparse.ArgumentTypeError(f"must be N or AxB, not {text!r}")
    return parts if len(parts) == 2 else parts[0]


@dataclass
class Data:
    """Batches of the three parts of a corpus."""

    vocabulary: Vocabulary
    train: object
    validation: object
    test: object
    total_steps: int


def load_data(options) -> Data:
    corpus = Corpus.from_directory(options.data) if options.data else Corpus.standard_library()
    vocabulary = make_vocabulary(corpus.train, options.vocabulary, "words" if options.data else "code")

    def held_out(text):
        """In larger batches, which evaluate faster; every token counts once whatever their size."""
        length = vocabulary.count_tokens(text)
        batches = contiguous_batches(text, vocabulary, 4 * options.batch, options.steps, num_tokens=length)
        return batches.take(2).cache() if options.smoke else batches.cache()

    train = contiguous_batches(
        corpus.train,
        vocabulary,
        options.batch,
        options.steps,
        shuffle_buffer=100_000,
        seed=options.seed,
        drop_remainder=True,
    )
    a_pass = vocabulary.num_tokens / (options.batch * options.steps)  # in batches
    steps = int(options.epochs * a_pass)
    if a_pass < 1 or steps < 1:  # no pass has a whole batch, however many there are; or the training has none
        raise ValueError(
            f"{min(1.0, options.epochs)} epochs of {vocabulary.num_tokens} tokens are not one batch of {options.batch} "
            f"windows of {options.steps} steps. Pass a smaller --batch or --steps"
            + (", or more --epochs." if a_pass >= 1 else ", or a longer text.")
        )
    steps = min(steps, 20) if options.smoke else steps
    return Data(vocabulary, train.repeat(), held_out(corpus.validation), held_out(corpus.test), steps)


def make_mixture(options, gate: str = "noisy_top_k") -> SparseMoE:
    # From random weights, which tell tokens apart from the first step: the layer's default is the paper's zeros.
    gate = tf_moe.gates.get(gate, options.experts, options.k, options.seed, kernel_initializer="glorot_uniform")
    return SparseMoE(options.experts, options.hidden, options.k, gate, output_activation="sigmoid", name="moe")


def train(middle, name: str, data: Data, options) -> dict:
    """Train one model, with some looks at the validation text on the way, and return its row of the table."""
    keras.utils.set_random_seed(options.seed)
    model = language_model(len(data.vocabulary), [middle], options.width, options.dropout, name=name)
    total_steps = data.total_steps
    points = min(2 if options.smoke else 5, total_steps)
    schedule = warmup_cosine(options.learning_rate, total_steps, min(500, total_steps // 10), alpha=0.05)
    model.compile(
        keras.optimizers.Adam(schedule, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    counts = count(model)
    print(f"\n{name}: {counts.parameters:,} parameters, {counts.multiply_adds:,} ops/timestep")
    stopwatch = Stopwatch()
    history = model.fit(
        data.train,
        steps_per_epoch=total_steps // points,
        epochs=points,
        validation_data=data.validation,
        callbacks=[stopwatch],
        shuffle=False,  # the data come shuffled
    ).history
    model.save(options.output / f"{name}.keras")
    row = {
        "model": name,
        "parameters": counts.parameters,
        "ops/timestep": counts.multiply_adds,
        "tokens/s": round(stopwatch.steps_per_second * options.batch * options.steps),
        "validation perplexity": history["val_perplexity"][-1],
        "test perplexity": model.evaluate(data.test, verbose=0, return_dict=True)["perplexity"],
    }
    if isinstance(middle, SparseMoE):
        usage = measure_usage(model, data.test)[middle.name]
        row |= {
            "CV(importance)": usage.importance_cv,
            "CV(load)": usage.load_cv,
            "max/mean load": usage.max_over_mean_load,
        }
        title = f"{name}, test text: CV(load) {usage.load_cv:.2f}, max/mean {usage.max_over_mean_load:.2f}"
        import_plots().plot_load(usage.load, options.output / "load.png", title)
    steps = [(i + 1) * (total_steps // points) for i in range(points)]
    return {"row": row, "history": history, "curve": (steps, history["val_perplexity"])}


def import_plots():
    """The module; raises ImportError, which says what to install."""
    try:
        import tf_moe.analysis.plots as plots  # here: other examples import this file, and need no matplotlib
    except ImportError as error:
        raise ImportError("Plots take the package matplotlib: pip install 'tf_moe[plots]'.") from error
    return plots


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    started = time.perf_counter()
    try:
        import_plots()  # before the training, not after
        moe = make_mixture(options, options.gate)
        data = load_data(options)
        options.output.mkdir(parents=True, exist_ok=True)
        data.vocabulary.save(options.output / "vocabulary.txt")  # a model is of use with it, as soon as it is saved
    except (ValueError, OSError, ImportError) as error:  # the message says what to do
        sys.exit(f"language_model.py: {error}")
    print(f"{data.vocabulary.num_tokens:,} training tokens, {data.total_steps:,} steps for each model")

    experts = "x".join(str(n) for n in options.experts) if isinstance(options.experts, tuple) else options.experts
    runs = {
        name: train(middle, name, data, options)
        for name, middle in ((f"moe-{experts}", moe), ("dense", dense_twin(moe, options.width)))
    }
    (options.output / "history.json").write_text(
        json.dumps({n: run["history"] for n, run in runs.items()}, indent=1), encoding="utf-8"
    )
    table = format_table([run["row"] for run in runs.values()])
    (options.output / "table.md").write_text(table + "\n", encoding="utf-8")
    import_plots().plot_perplexity(
        {n: run["curve"] for n, run in runs.items()}, options.output / "perplexity.png", "Equal compute"
    )
    print(f"\n{table}\n\n{time.perf_counter() - started:.0f} s; models, history and plots are in {options.output}")


if __name__ == "__main__":
    main()
