"""Trains one of the paper's language models on text of any size, as the paper does, on one device or on several.

The One Billion Word benchmark, unpacked (or any directory of text files, one sentence a line, .gz and .xz too; of names
with train, valid, test or heldout `tf_moe.text.split` says which is what), on all GPUs of the machine:

    python examples/billion_words.py --data 1-billion-word-language-modeling-benchmark-r13output

The first time it counts the words and writes the text as numbers to `--cache`, shard by shard. Sentences are packed
into rows; the softmax is trained on a sample of the words, and evaluated with all; experts have the factored Adam of
appendix D; with several devices they are split over them. Started again, it goes on where it was, also with more
`--epochs`. Its progress is in steps, its outcome a row of `table.csv` and a model in `--output`.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import keras
import tensorflow as tf
from common import make_strategy, make_vocabulary, positive

from tf_moe.distribute import Resume, barrier, find_cluster
from tf_moe.layers import SampledSoftmax, SampledSoftmaxLoss
from tf_moe.models import PAPER, Perplexity
from tf_moe.optimizers import FactoredAdam, WarmupInverseSqrt, optimizer_for
from tf_moe.text import Corpus, TokenCache, Vocabulary, cache_tokens, packed_batches

WORDS_PER_DEVICE = 300_000 // 16  # of a step: the paper's batch, on its 16 GPUs
# What a training that goes on must have in common with the one before.
SETTINGS = ("network", "width", "vocabulary", "sampled", "batch", "time", "rate", "warmup", "seed")
A_DAY = 24 * 3600.0  # seconds, in which a process writes a large text as numbers and others wait


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, number = parser.add_argument, {"type": positive, "metavar": "N"}
    add("--data", required=True, metavar="DIR", help="directory of text files")
    add("--network", default="MoE-256-h", choices=PAPER, metavar="NAME", help=f"one of {', '.join(PAPER)}")
    add("--width", help="of the network (default: the paper's)", **number)
    add("--vocabulary", default=100_000, help="words, with three specials (default: %(default)s)", **number)
    add("--sampled", default=8192, help="words in a sample of the softmax (default: %(default)s)", **number)
    add("--devices", help="GPUs, or parts of the CPU (default: all GPUs, else 1)", **number)
    add("--batch", help=f"tokens in a step of all devices (default: {WORDS_PER_DEVICE} for each)", **number)
    add("--time", default=64, help="tokens in a row (default: %(default)s)", **number)
    add("--epochs", default=10, help="passes over the text (default: %(default)s)", **number)
    add("--steps", help="of training (default: --epochs passes)", **number)
    add("--rate", default=1e-3, type=float, help="highest learning rate (default: %(default)s)")
    add("--warmup", default=1000, help="steps in which it is reached (default: %(default)s)", **number)
    add("--held-out", default=10_000, help="validation sentences after a pass (default: %(default)s)", **number)
    add("--save-every", default=1000, help="steps between checkpoints (default: %(default)s)", **number)
    add("--seed", default=0, type=int, help="of weights, noise and order (default: %(default)s)")
    add("--cache", type=Path, metavar="DIR", help="default: runs/billion_words/cache, with --smoke another")
    add("--output", type=Path, metavar="DIR", help="default: runs/billion_words, with --smoke runs/billion_words_smoke")
    add("--smoke", action="store_true", help="a tiny run, to see that all works")
    options = parser.parse_args(arguments)
    options.devices = options.devices or len(tf.config.list_physical_devices("GPU")) or 1
    # Where a tiny run has been, a real one could not go on.
    folder = Path("runs/billion_words_smoke" if options.smoke else "runs/billion_words")
    options.output, options.cache = options.output or folder, options.cache or folder / "cache"
    if options.smoke:
        options.width, options.batch, options.time, options.held_out, options.save_every = 16, 64, 8, 20, 2
        options.sampled, options.warmup, options.rate, options.epochs = 32, 5, 0.02, min(options.epochs, 2)
    return options


def load_cache(options, is_chief: bool) -> tuple[Vocabulary, dict[str, TokenCache]]:
    """The vocabulary and the parts of the corpus as numbers; of several processes the first makes what is not there."""
    corpus, file = Corpus.from_directory(options.data), options.cache / "vocabulary.txt"
    if is_chief and not file.exists():
        options.cache.mkdir(parents=True, exist_ok=True)
        print("counting words", flush=True)
        make_vocabulary(corpus.train, options.vocabulary).save(file)
    barrier(timeout=A_DAY)
    vocabulary = Vocabulary.load(file)
    if len(vocabulary) != options.vocabulary:
        raise ValueError(
            f"{str(file)!r} has {len(vocabulary)} words. Received: --vocabulary {options.vocabulary}. Pass that number "
            "or another --cache."
        )

    def load():
        return {
            part: cache_tokens(getattr(corpus, part), vocabulary, options.cache / part, told(part))
            for part in ("train", "validation", "test")
        }

    def told(part):
        return (lambda done, all_: print(f"{part}: {done} of {all_} shards", flush=True)) if is_chief else None

    caches = load() if is_chief else None
    barrier(timeout=A_DAY)
    return vocabulary, caches or load()


def make_model(options, vocabulary_size: int) -> keras.Model:
    """As in appendix C.1, but for the optimizer of the experts, which is that of appendix D."""
    network = PAPER[options.network].scaled(options.width or PAPER[options.network].width)
    model = network.build(vocabulary_size, SampledSoftmax(vocabulary_size, options.sampled, name="softmax"))
    adam, factored = (
        kind(WarmupInverseSqrt(options.rate, options.warmup)) for kind in (keras.optimizers.Adam, FactoredAdam)
    )
    optimizer = adam if network.num_experts is None else optimizer_for(experts=factored, others=adam)
    model.compile(optimizer, SampledSoftmaxLoss(reduction="mean_with_sample_weight"))
    return model


class Progress(keras.callbacks.Callback):
    """Says how training goes, and what the held-out text says after each pass.

    Args:
        judge: The same model, to be evaluated.
        validation: Batches.
        tokens: Tokens in a step.
        say: What prints.
    """

    def __init__(self, judge: keras.Model, validation: tf.data.Dataset, tokens: float, say):
        super().__init__()
        self.judge, self.validation, self.tokens, self.say = judge, validation, tokens, say
        self.steps, self.seconds, self._last = 0, 0.0, None

    @property
    def tokens_per_second(self) -> float:
        """By the clock, waiting for data and saving too; 0 where there was no second step to measure."""
        return self.steps * self.tokens / self.seconds if self.steps else 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._last = None  # the first step, which traces the model, is left out, and so is evaluation

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self._last is not None:
            self.steps, self.seconds = self.steps + 1, self.seconds + now - self._last
        self._last = now
        if (batch + 1) % 50 == 0:
            self.say(f"  step {batch + 1:,} loss {float(logs['loss']):.4f} {self.tokens_per_second:,.0f} tokens/s")

    def on_epoch_end(self, epoch, logs=None):
        perplexity = evaluate(self.judge, self.validation)
        self.say(f"epoch {epoch + 1}: loss {logs['loss']:.4f}, validation perplexity {perplexity:.2f}")


def counted(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, and how many, without which Keras warns at their end."""
    return batches.apply(tf.data.experimental.assert_cardinality(sum(1 for _ in batches)))


def evaluate(judge: keras.Model, batches: tf.data.Dataset) -> float:
    return judge.evaluate(batches, verbose=0, return_dict=True)["perplexity"]


def add_row(table: Path, row: dict) -> None:
    """Add an outcome to a table, unless it is there: of the same training, that came to its end before."""
    rows = []
    if table.exists():
        with table.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    if any(all(old[name] == str(value) for name, value in row.items() if name != "tokens/s") for old in rows):
        return
    with table.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, row)
        writer.writeheader()
        writer.writerows([*rows, row])


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        # Before anything else that uses TensorFlow.
        on_mesh = options.devices > 1 or find_cluster() is not None
        strategy = make_strategy(options) if on_mesh else tf.distribute.get_strategy()
        is_chief, devices = (strategy.is_chief, strategy.shards.devices) if on_mesh else (True, 1)
        say = (lambda line: print(line, flush=True)) if is_chief else (lambda line: None)
        options.batch = options.batch or WORDS_PER_DEVICE * devices
        vocabulary, caches = load_cache(options, is_chief)
        rows = options.batch // options.time // devices * devices
        if not rows or caches["train"].num_tokens < rows * options.time:
            raise ValueError(
                f"--batch must hold a row of {options.time} tokens for each of {devices} devices, and no more than "
                f"the {caches['train'].num_tokens:,} tokens of the text. Received: {options.batch}."
            )
    except (ValueError, OSError) as error:  # a wrong argument or an unusable text: the message says what to do
        sys.exit(f"billion_words.py: {error}")
    keras.utils.set_random_seed(options.seed)

    train = packed_batches(
        caches["train"], rows, options.time, shuffle_buffer=100_000, seed=options.seed, drop_remainder=True
    )
    # A pass is an epoch; of fewer steps, or more, epochs of one length with new random sentences each.
    a_pass = int(train.cardinality())
    total = options.steps or options.epochs * a_pass
    epochs = -(-total // a_pass)
    # Each sentence by itself; of all words' logits a device has a GiB at most.
    judged_rows = min(max(1, 2**28 // (options.time * len(vocabulary))), rows // devices) * devices
    validation, test = (
        packed_batches(caches[part], judged_rows, options.time, sentences_per_row=1) for part in ("validation", "test")
    )
    looked_at = counted(validation.take(-(-options.held_out // judged_rows)))
    some = packed_batches(caches["train"], rows, options.time, drop_remainder=True).take(20)
    filled = sum(float(tf.reduce_mean(weights)) for _, _, weights in some) / int(some.cardinality())

    with strategy.scope():
        model = make_model(options, len(vocabulary))
        judge = keras.Model(model.inputs, model.outputs, name=model.name)
        full = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        judge.compile(optimizer=None, loss=full, weighted_metrics=[Perplexity()])
    say(
        f"{model.name}: {model.count_params():,} weights on {devices} device(s); {caches['train'].num_tokens:,} "
        f"tokens, {epochs} x {total // epochs:,} steps of {rows} rows of {options.time}, {1 - filled:.1%} padding"
    )
    progress = Progress(judge, looked_at, rows * options.time * filled, say)
    resume = Resume(
        options.output / f"checkpoints-{options.network}",
        options.save_every,
        delete_checkpoint=False,
        settings={**{name: getattr(options, name) for name in SETTINGS}, "steps of an epoch": total // epochs},
        save_before_exit=find_cluster() is None,
    )
    try:
        model.fit(
            train.take(total // epochs),
            epochs=epochs,
            callbacks=[progress, resume],
            shuffle=False,  # the data come shuffled
            verbose=0,
        )
    except (ValueError, OSError) as error:  # what was begun before does not go on like this
        sys.exit(f"billion_words.py: {error}")
    row = {
        "network": options.network,
        "width": options.width or PAPER[options.network].width,
        "vocabulary": len(vocabulary),
        "devices": devices,
        "weights": model.count_params(),
        "batch": rows * options.time,
        "steps": total // epochs * epochs,
        "padding": f"{1 - filled:.3f}",
        "tokens/s": round(progress.tokens_per_second),
        "test perplexity": f"{evaluate(judge, counted(test)):.2f}",
    }
    judge.save(options.output / f"{options.network}.keras")
    if is_chief:
        vocabulary.save(options.output / "vocabulary.txt")
        add_row(options.output / "table.csv", row)
    say("\n".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
