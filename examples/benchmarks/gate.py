"""The gate in training, as a multiple of its own matrix products; hierarchical gates as a share of the flat one.

    python examples/benchmarks/gate.py
    python examples/benchmarks/gate.py --kinds --experts 256

A step is the forward and the backward pass of noisy top-k gating with both losses, with fresh inputs and noise. With
`--kinds`, of every gate there is, as a multiple of noisy top-k's, with 4 experts for a token where a gate leaves that.
"""

import tensorflow as tf
from arguments import make_parser, parse
from steps import gate_step
from timing import interleave, print_table

from tf_moe.gates import GATES, Hierarchical, NoisyTopK


def products_step(experts, width):
    """The products x W_g and x W_noise and their gradients."""
    weights = [tf.random.normal([width, experts]) for _ in range(2)]
    d_logits = [tf.random.normal([1, experts]) for _ in range(2)]

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch([x, *weights])
            logits = [tf.matmul(x, w) for w in weights]
        upstream = [tf.repeat(d, tf.shape(x)[0], axis=0) for d in d_logits]
        # The logits too, or nobody would compute them: the gradients of a product do not need it.
        return logits, tape.gradient(logits, [x, *weights], upstream)

    return step


def measure(experts, groups, options):
    width = options.width
    calls = {"products": products_step(experts, width), "flat": gate_step(NoisyTopK(experts, 4), width)}
    if groups:
        pair = (groups, experts // groups)
        calls["hierarchical"] = gate_step(Hierarchical(pair, (2, 2)), width)
    times = interleave(calls, lambda: (tf.random.normal([options.tokens, width]),), options.repetitions)
    row = {"experts": experts, "products (CPU ms)": times["products"].cpu, "flat (CPU ms)": times["flat"].cpu}
    row |= {"flat / products, CPU": times["flat"].cpu / times["products"].cpu}
    row |= {"flat / products, clock": times["flat"].wall / times["products"].wall}
    share = times["hierarchical"].cpu / times["flat"].cpu if groups else ""
    return row | {"hierarchical": f"{groups}x{experts // groups}" if groups else "", "/ flat, CPU": share}


def measure_kinds(experts, groups, options):
    """A row for each gate; that of all experts for every token has 4, which is the same arithmetic."""
    gates = {"dense_softmax": GATES["dense_softmax"](4), "switch": GATES["switch"](experts)}
    others = GATES.keys() - {"dense_softmax", "switch", "hierarchical"}
    gates |= {name: GATES[name](experts, 4) for name in others}
    if groups:
        gates["hierarchical"] = Hierarchical((groups, experts // groups), (2, 2))
    calls = {name: gate_step(gate, options.width) for name, gate in gates.items()}
    times = interleave(calls, lambda: (tf.random.normal([options.tokens, options.width]),), options.repetitions)
    base = times["noisy_top_k"]
    for name, time in sorted(times.items(), key=lambda item: item[1].cpu):
        row = {"experts": gates[name].num_experts, "gate": name, "CPU ms": time.cpu}
        yield row | {"/ noisy_top_k, CPU": time.cpu / base.cpu, "clock": time.wall / base.wall}


def main(arguments=None):
    parser = make_parser(__doc__, experts=[16, 256, 1024, 4096], tokens=4096, width=512, repetitions=15)
    parser.add_argument("--kinds", action="store_true", help="every gate there is, beside noisy top-k")
    options = parse(parser, arguments, experts=[64], tokens=32, width=16, repetitions=1)
    groups = {64: 8, 256: 16, 1024: 32, 4096: 64}
    if options.kinds:
        print_table(row for experts in options.experts for row in measure_kinds(experts, groups.get(experts), options))
    else:
        print_table(measure(experts, groups.get(experts), options) for experts in options.experts)


if __name__ == "__main__":
    main()
