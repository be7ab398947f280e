"""Trains the paper's language model with its experts split over devices, and shows what is where and what moves.

In one process, over two parts of the CPU or over two GPUs; or in several processes, here or on several machines:

    python examples/distributed.py --devices 2
    python -m tf_moe.distribute.launch --processes 2 --devices-per-process 1 examples/distributed.py

Text and sizes are chosen as in `language_model.py`, which stands beside it. Every process reads the same text, and
`model.fit` keeps its part of each batch; only process 0 prints.
"""

import argparse
import math
import sys
import time

import keras
import numpy as np
from common import Stopwatch, format_table, make_strategy, positive, warmup_cosine
from language_model import add_model_arguments, complete, load_data, make_mixture

from tf_moe.analysis.scaling import StepCost, format_costs, step_cost
from tf_moe.distribute import find_cluster
from tf_moe.distribute.traffic import Traffic, measure_traffic
from tf_moe.models import Perplexity, language_model


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--devices",
        default=2,
        type=positive,
        metavar="N",
        help="in one process; else the cluster's (default: %(default)s)",
    )
    add_model_arguments(parser)
    parser.set_defaults(experts=16, hidden=256, epochs=0.2, batch=32, steps=32)
    options = complete(parser.parse_args(arguments))
    if options.devices == 1 and find_cluster() is None:
        parser.error("--devices must be at least 2: on one nothing moves. See language_model.py")
    return options


def make_model(options, vocabulary_size: int, total_steps: int) -> keras.Model:
    keras.utils.set_random_seed(options.seed)
    model = language_model(vocabulary_size, [make_mixture(options)], options.width, options.dropout)
    schedule = warmup_cosine(options.learning_rate, total_steps, total_steps // 10, alpha=0.05)
    model.compile(
        keras.optimizers.Adam(schedule),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[Perplexity()],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def describe_layouts(model: keras.Model) -> str:
    """A line for every weight and slot: those that are split first."""
    variables = [*model.weights, *(v for v in model.optimizer.variables if len(v.shape))]
    groups = {"split, a part on each shard": [], "whole on every device": []}
    for variable in variables:
        specs = [None if s == "unsharded" else s for s in variable.value.layout.sharding_specs]
        line = f"  {variable.path:60} {str(tuple(variable.shape)):18} {specs}"
        groups["split, a part on each shard" if any(specs) else "whole on every device"].append(line)
    return "\n".join(line for title, lines in groups.items() for line in (f"{title}:", *lines))


def predict_cost(model: keras.Model, options, strategy) -> StepCost:
    sizes = {w.path: math.prod(w.shape) for w in model.trainable_weights if not w.path.startswith("moe/")}
    tables = sum(size for path, size in sizes.items() if path.startswith("embedding/"))
    return step_cost(
        options.experts,
        options.width,
        options.hidden,
        options.k,
        options.batch * options.steps,
        strategy.shards.devices,
        dense_parameters=sum(sizes.values()) - tables,
        table_parameters=tables,
    )


def measure_first_step(model: keras.Model, options, vocabulary_size: int) -> Traffic:
    """Compiles the step on random tokens; the warm-up's first learning rate is 0, so no weight changes."""
    ids = np.random.default_rng(options.seed).integers(
        1, vocabulary_size, (options.batch, options.steps), dtype="int32"
    )
    weights = np.ones(ids.shape, "float32")
    return measure_traffic(lambda: model.train_on_batch(ids, ids, weights))


def compare_traffic(cost: StepCost, traffic: Traffic) -> str:
    """What the cost model says that a device sends in a step, beside what the compiled program says."""
    rows = {
        "all-to-all, the exchange": (cost.exchange_bytes, traffic.bytes_sent("all_to_all")),
        "... in a turn for hot experts": (cost.turn_exchange_bytes, traffic.bytes_sent("all_to_all", in_loop=True)),
        "all-reduce, gradients and statistics": (cost.reduce_bytes, traffic.bytes_sent("all_reduce")),
        "all-gather": (0.0, traffic.bytes_sent("all_gather")),
    }
    return format_table(
        [
            {"sent by a device and step": k, "model, bytes": int(m), "program, bytes": int(p)}
            for k, (m, p) in rows.items()
        ]
    )


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        strategy = make_strategy(options)  # before anything else that uses TensorFlow
        say = print if strategy.is_chief else lambda *_: None
        if options.batch % strategy.shards.devices:
            raise ValueError(f"--batch must divide evenly over {strategy.shards.devices} devices, not {options.batch}")
        data = load_data(options)
        with strategy.scope():
            model = make_model(options, len(data.vocabulary), data.total_steps)
    except (ValueError, OSError) as error:  # a wrong argument or an unusable text: the message says what to do
        sys.exit(f"distributed.py: {error}")
    say(f"{strategy.shards.devices} devices, {data.total_steps:,} steps\n")
    say(describe_layouts(model))

    started = time.perf_counter()
    traffic, cost = measure_first_step(model, options, len(data.vocabulary)), predict_cost(model, options, strategy)
    say(f"\nstep compiled in {time.perf_counter() - started:.0f} s\n\n{compare_traffic(cost, traffic)}\n")
    say(format_costs({"cost model": cost}))
    say("\nSection 3.2: the last line must exceed the multiply-adds a device does while it sends a number.\n")

    stopwatch, points = Stopwatch(), min(2 if options.smoke else 4, data.total_steps)
    model.fit(
        data.train,
        steps_per_epoch=data.total_steps // points,
        epochs=points,
        validation_data=data.validation,
        callbacks=[stopwatch],
        shuffle=False,  # the data come shuffled
        verbose=2 if strategy.is_chief else 0,
    )
    test = model.evaluate(data.test, verbose=0, return_dict=True)["perplexity"]
    say(f"\n{stopwatch.steps_per_second * options.batch * options.steps:,.0f} tokens/s, test perplexity {test:.2f}")


if __name__ == "__main__":
    main()
