"""A few tokens through many experts, as a multiple of the arithmetic of the experts that are hit.

    python examples/benchmarks/inference.py

The floor is two dense products for each expert that is hit, one after the other, with as many rows as it has tokens.
Every call has fresh tokens, hence other experts.
"""

import numpy as np
import tensorflow as tf
from arguments import make_parser, parse
from timing import interleave, print_table

from tf_moe.layers import SparseMoE


def measure(tokens, options):
    layer = SparseMoE(options.experts, options.hidden, k=options.k)
    layer.build((None, options.width))
    layer.gate.kernel.assign(tf.random.normal(layer.gate.kernel.shape))
    first, second = (tf.convert_to_tensor(w) for w in layer.experts.trainable_variables)
    ours = tf.function(lambda x, *_: layer(x))

    @tf.function
    def products(x, hit, rows):
        def body(n, outputs):
            y = tf.matmul(tf.nn.relu(tf.matmul(x[: rows[n]], first[hit[n]])), second[hit[n]])
            return n + 1, outputs + tf.reduce_sum(y)

        return tf.while_loop(lambda n, _: n < tf.size(hit), body, (0, 0.0), parallel_iterations=1)[1]

    hits = []

    def fresh():
        x = tf.random.normal([tokens, options.width])
        hit, rows = np.unique(layer.route(x).expert_index, return_counts=True)
        hits.append(len(hit))
        return x, tf.constant(hit, tf.int32), tf.constant(rows, tf.int32)

    times = interleave({"products": products, "tf_moe": ours}, fresh, options.repetitions)
    return {
        "tokens": tokens,
        "experts hit": float(np.mean(hits)),
        "products, clock (ms)": times["products"].wall,
        "tf_moe, clock (ms)": times["tf_moe"].wall,
        "ratio, clock": times["tf_moe"].wall / times["products"].wall,
        "ratio, CPU": times["tf_moe"].cpu / times["products"].cpu,
    }


def main(arguments=None):
    parser = make_parser(__doc__, tokens=[1, 2, 4, 8, 16, 32], experts=256, width=512, hidden=1024, k=4, repetitions=50)
    options = parse(parser, arguments, tokens=[2], experts=8, width=16, hidden=32, repetitions=1)
    print_table(measure(tokens, options) for tokens in options.tokens)


if __name__ == "__main__":
    main()
