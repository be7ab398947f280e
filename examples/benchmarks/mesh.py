"""Times a training step of the language model on a mesh of logical CPUs against one device on the same cores.

The two do the same arithmetic on the same cores, so the ratio is what it costs to be distributed: sorting and exchange,
padding of the blocks, compiled programs of static shape. It shows no speed-up, which takes more cores.

    python examples/benchmarks/mesh.py
    python examples/benchmarks/mesh.py --traffic

Every step has a fresh random batch, and the two models take turns. Times are medians, by the clock and of CPU time; on
a busy machine only the latter mean something. `--traffic` times nothing: it prints the bytes that a device sends in a
step, as the cost model says and as the compiled programs say.
"""

import contextlib
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.analysis.scaling import step_cost
from tf_moe.distribute import ExpertParallelStrategy
from tf_moe.distribute.traffic import measure_traffic
from tf_moe.layers import SparseMoE
from tf_moe.models import language_model


class Sizes(NamedTuple):
    """A language model and its batch."""

    experts: int | tuple[int, int]
    k: int | tuple[int, int]
    width: int
    hidden: int
    vocabulary: int
    batch: int
    steps: int

    @property
    def tokens(self) -> int:
        return self.batch * self.steps


MODELS = {
    "the example's": Sizes(16, 4, 128, 256, 4096, 32, 32),
    "larger": Sizes(16, 4, 256, 512, 4096, 64, 32),
}
SMOKE = {"smoke": Sizes(4, 2, 16, 32, 100, 4, 8)}

# Shards, replicas, experts and k of the exchanges that `--traffic` measures.
EXCHANGES = [
    (2, 1, 16, 4),
    (4, 1, 16, 4),
    (8, 1, 16, 4),
    (8, 1, (8, 8), (2, 2)),
    (2, 2, 16, 4),
]


def make_model(sizes: Sizes) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = language_model(
        sizes.vocabulary, [SparseMoE(sizes.experts, sizes.hidden, sizes.k, seed=0, name="moe")], sizes.width
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def compare(name: str, sizes: Sizes, devices: int, repetitions: int) -> dict:
    """The row of one model: medians in milliseconds, and their ratios."""
    models = []
    for scope in (contextlib.nullcontext(), ExpertParallelStrategy([f"CPU:{n}" for n in range(devices)]).scope()):
        with scope:
            models.append(make_model(sizes))
    rng = np.random.default_rng()

    def fresh():
        ids = rng.integers(1, sizes.vocabulary, (sizes.batch, sizes.steps + 1))
        return ids[:, :-1], ids[:, 1:]

    times = interleave({"one": models[0].train_on_batch, "mesh": models[1].train_on_batch}, fresh, repetitions)
    one, mesh = times["one"], times["mesh"]
    return {
        "model": name,
        "tokens": sizes.tokens,
        "one device, clock (ms)": one.wall,
        "mesh, clock (ms)": mesh.wall,
        "ratio, clock": mesh.wall / one.wall,
        "one device, CPU (ms)": one.cpu,
        "mesh, CPU (ms)": mesh.cpu,
        "ratio, CPU": mesh.cpu / one.cpu,
    }


def exchange(shards: int, replicas: int, experts, k) -> dict:
    """What a step of just the layer sends, width 64, 128 hidden units, 4096 tokens in all."""
    width, hidden, batch, steps = 64, 128, 16, 256
    strategy = ExpertParallelStrategy(
        [f"CPU:{n}" for n in range(shards * replicas)], {"replica": replicas, "expert": shards}
    )
    with strategy.scope():
        inputs = keras.Input((steps, width))
        model = keras.Model(inputs, SparseMoE(experts, hidden, k)(inputs))
        model.compile("adam", "mse")
    x = tf.random.normal([batch, steps, width]).numpy()
    traffic = measure_traffic(lambda: model.train_on_batch(x, x))
    cost = step_cost(experts, width, hidden, k, batch * steps, shards, replicas)
    return {
        "shards x replicas": f"{shards} x {replicas}",
        "experts": "x".join(map(str, experts)) if isinstance(experts, tuple) else str(experts),
        "exchange, model": round(cost.exchange_bytes),
        "program": round(traffic.bytes_sent("all_to_all")),
        "without padding": round(cost.ideal_exchange_bytes),
        "turn, model": round(cost.turn_exchange_bytes),
        "turn, program": round(traffic.bytes_sent("all_to_all", in_loop=True)),
        "gradients, model": round(cost.reduce_bytes),
        "all-reduce, program": round(traffic.bytes_sent("all_reduce")),
        "all-gather, program": round(traffic.bytes_sent("all_gather")),
    }


def main(arguments=None) -> None:
    parser = make_parser(__doc__, devices=2, repetitions=15)
    parser.add_argument("--traffic", action="store_true", help="bytes instead of times")
    options = parse(parser, arguments, repetitions=2)
    needed = max(math.prod(mesh[:2]) for mesh in EXCHANGES) if options.traffic else options.devices
    cpu, part = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [part] * needed)
    if options.traffic:
        print_table(exchange(*mesh) for mesh in (EXCHANGES[:1] if options.smoke else EXCHANGES))
        return
    models = SMOKE if options.smoke else MODELS
    print_table(compare(name, sizes, options.devices, options.repetitions) for name, sizes in models.items())


if __name__ == "__main__":
    main()
