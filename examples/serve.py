"""Serve trained models: export a language model with its vocabulary, then use it, or a translator, without tf_moe.

    python examples/language_model.py
    python examples/serve.py export runs/language_model/moe-64.keras served
    python examples/serve.py score served --text "for key in self:" "return return ("
    python examples/serve.py continue served --text "def main(" "import" --tokens 20 --temperature 0.7

    python examples/translation.py
    python examples/serve.py translate runs/translation/moe-served --text "two hundred and one" --to fr

What is exported maps strings to strings and numbers; to load it takes TensorFlow, and tensorflow_text for its
tokeniser. `--repeat` calls it as many times, and says how many tokens it does in a second and how long a call takes.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path

import tensorflow as tf
import tensorflow_text  # noqa: F401  the tokeniser's operations, which what was exported refers to


def export(model_path: Path, vocabulary_path: Path, directory: Path) -> None:
    """Write a SavedModel with the functions `score` and `generate`."""
    import keras

    import tf_moe

    model = keras.models.load_model(model_path)
    vocabulary = tf_moe.text.Vocabulary.load(vocabulary_path)
    decoder = tf_moe.models.Decoder(model)
    names = tf.constant(vocabulary.tokens)
    end = vocabulary.END

    def score(lines):
        """Log-probability of each line, in nats, and the number of its tokens, the end of the line included."""
        targets = vocabulary.encode(lines)
        inputs = tf.concat([tf.fill([targets.nrows(), 1], end), targets[:, :-1]], axis=1).to_tensor()
        targets = targets.to_tensor()
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, model(inputs))
        counts = tf.cast(targets != vocabulary.PAD, tf.float32)
        return -tf.reduce_sum(losses * counts, axis=1), tf.reduce_sum(counts, axis=1)

    def generate(lines, length, temperature, seed):
        """Each line with at most `length` more tokens, drawn at this temperature; at 0 the most likely ones."""
        prompts = vocabulary.encode(lines)[:, :-1]
        prompts = tf.concat([tf.fill([prompts.nrows(), 1], end), prompts], axis=1).to_tensor()
        rows, steps = tf.unstack(tf.shape(prompts))
        never = tf.one_hot([vocabulary.PAD, vocabulary.UNK], len(vocabulary), on_value=-1e9)
        state, logits = decoder.initial_state(rows), tf.zeros([rows, len(vocabulary)])
        for t in tf.range(steps):
            ids = prompts[:, t]
            new, state = decoder.step(ids, state)
            logits = tf.where(tf.expand_dims(ids != vocabulary.PAD, 1), new, logits)
        text, ended = lines, tf.zeros([rows], tf.bool)
        for t in tf.range(length):
            logits += tf.reduce_sum(never, axis=0)
            drawn = tf.random.stateless_categorical(logits / tf.maximum(temperature, 1e-3), 1, seed + [t, 0], tf.int32)
            ids = tf.where(temperature > 0, drawn[:, 0], tf.argmax(logits, axis=1, output_type=tf.int32))
            ended = tf.logical_or(ended, ids == end)
            ids = tf.where(ended, vocabulary.PAD, ids)
            word = tf.where(ids == vocabulary.PAD, "", tf.strings.join([" ", tf.gather(names, ids)]))
            text = tf.strings.join([text, word])
            logits, state = decoder.step(ids, state)
        return text

    lines, length = tf.TensorSpec([None], tf.string, "lines"), tf.TensorSpec([], tf.int32, "length")
    temperature, seed = tf.TensorSpec([], tf.float32, "temperature"), tf.TensorSpec([2], tf.int32, "seed")
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.track(vocabulary.table)
    archive.add_endpoint("score", tf.function(score, [lines]))
    archive.add_endpoint("generate", tf.function(generate, [lines, length, temperature, seed]))
    archive.write_out(str(directory), verbose=False)


def repeat(call, times: int):
    """What the last of some calls returned, and the seconds that each took but the first, which traces."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return result, seconds[1:] or seconds


def print_times(seconds: list[float], count: float, unit: str = "tokens") -> None:
    ordered = sorted(seconds)
    p50, p90, p99 = (1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.9, 0.99))
    speed = count / statistics.mean(seconds)
    print(f"{speed:,.0f} {unit}/s; a call takes {p50:.1f} ms, in one of ten {p90:.1f} or more, in one of 100 {p99:.1f}")


def show_scores(served, options) -> None:
    (scores, counts), seconds = repeat(lambda: served.score(tf.constant(options.text)), options.repeat)
    for line, score, count in zip(options.text, scores.numpy(), counts.numpy(), strict=True):
        print(f"{score:9.2f} nats, {int(count):3d} tokens, perplexity {math.exp(-score / count):9.1f}  {line}")
    print_times(seconds, float(tf.reduce_sum(counts)))


def show_continuations(served, options) -> None:
    def call():
        return served.generate(
            tf.constant(options.text),
            tf.constant(options.tokens),
            tf.constant(options.temperature),
            tf.constant([options.seed, 0]),
        )

    lines, seconds = repeat(call, options.repeat)
    print(*(line.decode() for line in lines.numpy()), sep="\n")
    print_times(seconds, options.tokens * len(options.text))


def show_translations(served, options) -> None:
    inputs = [tf.constant(options.text)]
    if len(served.translate.concrete_functions[0].structured_input_signature[0]) > 1:  # a model of several languages
        inputs.append(tf.constant(options.to))
    elif options.to:
        sys.exit("serve.py: this model translates into one language: leave --to out")
    try:
        (lines, scores), seconds = repeat(lambda: served.translate(*inputs), options.repeat)
    except tf.errors.InvalidArgumentError as error:
        sys.exit(f"serve.py: {error.message}")
    for line, score in zip(lines.numpy(), scores.numpy(), strict=True):
        print(f"{score:9.2f}  {line.decode()}")
    print_times(seconds, len(options.text), "lines")


# As in common.py, which imports tf_moe.
def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def seed(text: str) -> int:
    value = int(text)
    if not -(2**31) <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer of 32 bits, not {value}")
    return value


# Command: what shows it, the function that a model must have for it, help.
USES = {
    "score": (show_scores, "score", "how likely lines are"),
    "continue": (show_continuations, "generate", "lines and what may follow"),
    "translate": (show_translations, "translate", "lines in another language"),
}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    command = commands.add_parser("export", help="write what is served")
    command.add_argument("model", type=Path, help="a .keras file of examples/language_model.py")
    command.add_argument("directory", type=Path)
    command.add_argument("--vocabulary", type=Path, help="default: vocabulary.txt beside the model")
    readers = {}
    for name, (_, _, help_) in USES.items():
        command = commands.add_parser(name, help=help_)
        command.add_argument("directory", type=Path)
        command.add_argument("--text", nargs="+", required=True, metavar="LINE")
        command.add_argument("--repeat", type=positive, default=1, help="calls to be timed (default: %(default)s)")
        readers[name] = command
    readers["translate"].add_argument("--to", default="", metavar="LANGUAGE", help="where the model has several")
    command = readers["continue"]
    command.add_argument("--tokens", type=positive, default=20, help="default: %(default)s")
    command.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the most likely (default: %(default)s)"
    )
    command.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        if options.command == "export":
            export(options.model, options.vocabulary or options.model.parent / "vocabulary.txt", options.directory)
            return
        served = tf.saved_model.load(str(options.directory))
    except (ValueError, OSError) as error:  # no such model or vocabulary, or none of language
        sys.exit(f"serve.py: {error}")
    show, function, _ = USES[options.command]
    if not hasattr(served, function):
        able = ", ".join(command for command, (_, needed, _) in USES.items() if hasattr(served, needed))
        sys.exit(f"serve.py: the model in {options.directory} cannot {options.command}. It can: {able or 'nothing'}")
    show(served, options)


if __name__ == "__main__":
    main()
