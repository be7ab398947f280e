"""Other ways to compute a mixture of experts, which `layer.py` times beside the layer."""

import math

import tensorflow as tf


def einsum(x, index, weights, first, second, group=512, capacity_factor=1.25):
    """Dispatch and combine as products with one-hot matrices, groups of tokens apart."""
    tokens, k = index.shape
    experts, groups = first.shape[0], max(1, tokens // group)
    capacity = math.ceil(capacity_factor * k * (tokens // groups) / experts)
    chosen = tf.one_hot(tf.reshape(index, [groups, -1]), experts)  # (G, S k, E), tokens first
    position = tf.reduce_sum((tf.cumsum(chosen, axis=1) - 1) * chosen, axis=-1)
    place = tf.one_hot(tf.cast(position, tf.int32), capacity)
    combine = tf.einsum("gse,gsc,gs->gsec", chosen, place, tf.reshape(weights, [groups, -1]))
    combine = tf.reduce_sum(tf.reshape(combine, [groups, -1, k, experts, capacity]), axis=2)
    dispatch = tf.cast(combine > 0, x.dtype)
    x = tf.reshape(x, [groups, -1, x.shape[-1]])
    rows = tf.einsum("gsec,gsd->egcd", dispatch, x)
    rows = tf.reshape(rows, [experts, -1, x.shape[-1]])
    rows = tf.matmul(tf.nn.relu(tf.matmul(rows, first)), second)
    rows = tf.reshape(rows, [experts, groups, capacity, -1])
    return tf.reshape(tf.einsum("gsec,egcd->gsd", combine, rows), [tokens, -1])


def per_expert(x, index, weights, first, second):
    """A subgraph for each expert, which the executor may run in parallel."""
    pieces, places = [], []
    for e, (w_1, w_2) in enumerate(zip(tf.unstack(first), tf.unstack(second), strict=True)):
        assignment = tf.where(tf.equal(index, e))
        token = assignment[:, 0]
        rows = tf.matmul(tf.nn.relu(tf.matmul(tf.gather(x, token), w_1)), w_2)
        pieces.append(rows * tf.expand_dims(tf.gather_nd(weights, assignment), 1))
        places.append(token)
    return tf.math.unsorted_segment_sum(tf.concat(pieces, 0), tf.concat(places, 0), x.shape[0])


def all_experts(x, index, weights, first, second):
    """Every expert on every token, most of it multiplied by zero."""
    dense = tf.reduce_sum(tf.one_hot(index, first.shape[0]) * tf.expand_dims(weights, -1), axis=1)
    hidden = tf.nn.relu(tf.einsum("td,edh->eth", x, first))
    return tf.einsum("te,eth,ehd->td", dense, hidden, second)


CONTENDERS = {"einsum": einsum, "per_expert": per_expert, "all": all_experts}


def model_garden(experts: int, width: int, hidden: int, k: int, tokens: int, group: int = 512):
    """TF Model Garden's layer for as much arithmetic: a function x -> y, loss, and its weights."""
    try:
        from official.nlp.modeling.layers import moe
    except ImportError as error:
        raise SystemExit(f"model_garden needs the package tf-models-official: {error}") from error
    layer = moe.MoeLayer(
        moe.FeedForwardExperts(experts, hidden, activation=tf.nn.relu),
        moe.ExpertsChooseMaskedRouter(experts),
        train_capacity_factor=float(k),
    )
    group = min(group, tokens)
    layer.build((tokens // group, group, width))

    def outputs(x):
        y = layer(tf.reshape(x, [-1, group, width]), training=True)
        return tf.reshape(y, [tokens, width]), tf.add_n(layer.losses) if layer.losses else 0.0

    outputs(tf.zeros([tokens, width]))  # builds what is inside
    return outputs, layer.trainable_variables
