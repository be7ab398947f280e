"""Products of tokens with the matrices of the groups they belong to."""

import tensorflow as tf

from tf_moe.mesh import device_groups, device_rows
from tf_moe.mesh.move import Stay
from tf_moe.mesh.shards import Shards, current_shards
from tf_moe.ops.buffer_layout import make_buffer_layout
from tf_moe.ops.grouped import apply_grouped
from tf_moe.ops.grouped_mesh import apply_grouped_mesh
from tf_moe.ops.rows import take_rows
from tf_moe.ops.stacked_matmul import fastest_matmul


def matmul_by_group(tokens: tf.Tensor, group: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """`tokens[t] @ kernel[group[t, k]]` for every token and each of its groups, each product just where it is needed.

    Args:
        tokens: `(T, D)`.
        group: Int32 `(T, K)`; G is no group.
        kernel: `(G, D, O)`.

    Returns:
        `(T, K, O)`, zero where there is no group.
    """
    shards = current_shards()
    if shards is not None:
        return _on_mesh(tokens, group, kernel, shards)
    size, choices = tf.shape(tokens)[0], group.shape[-1]
    layout = make_buffer_layout(tf.reshape(group, [-1]), kernel.shape[0])
    token = tf.math.floordiv(layout.item, choices)  # of none, -1, it is -1
    rows = take_rows(tokens, token, tf.reshape(layout.row, [size, choices]))
    products = apply_grouped(fastest_matmul(), rows, layout.counts, [kernel], layout.places)
    products = take_rows(products, layout.row, tf.expand_dims(layout.item, -1))  # in the order of the tokens
    return tf.reshape(products, [size, choices, kernel.shape[-1]])


def _on_mesh(tokens, group, kernel, shards: Shards):
    choices = group.shape[-1]
    tokens, group = shards.split(tokens), shards.split(group)
    num_shards, replicas, size, _ = group.shape
    groups = device_groups.group_by(tf.reshape(group, [num_shards, replicas, size * choices]), kernel.shape[0])
    slot = tf.reshape(groups.place, group.shape)
    rows = device_rows.take_rows(tokens, tf.math.floordiv(groups.order, choices), slot)
    products = apply_grouped_mesh(_matmul_each, rows, groups, [kernel], Stay())
    products = device_rows.take_rows(products, groups.place, tf.expand_dims(groups.order, -1))
    return shards.join(tf.reshape(products, [num_shards, replicas, size, choices, kernel.shape[-1]]))


def _matmul_each(x, kernel):
    """(N, R, G, C, D), (G, D, O) -> (N, R, G, C, O)."""
    return tf.einsum("nrgcd,gdo->nrgco", x, kernel)
