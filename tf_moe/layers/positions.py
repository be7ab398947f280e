"""The positions of an input of any rank, in a row."""

import math
from typing import NamedTuple

import tensorflow as tf

from tf_moe import checks
from tf_moe.gates.ids import spread_ids
from tf_moe.mesh.shards import Shards
from tf_moe.ops.spread import spread


class Positions(NamedTuple):
    """T positions of width D.

    Attributes:
        tokens: `(T, D)`.
        mask: Bool `(T,)`, or None.
        gate_id: Integers `(T,)`, or None.
    """

    tokens: tf.Tensor
    mask: tf.Tensor | None
    gate_id: tf.Tensor | None


def flatten(inputs: tf.Tensor, mask: tf.Tensor | None, gate_id: tf.Tensor | None) -> Positions:
    """Inputs `(..., D)`, and a mask and ids of their leading dimensions or of the first of these."""
    static = inputs.shape.is_fully_defined()
    if mask is not None:
        mask = spread(checks.mask(mask, inputs, of_first=True), inputs)
    if gate_id is not None:
        gate_id = spread_ids(gate_id, inputs)
    tokens = tf.reshape(inputs, [math.prod(inputs.shape[:-1]) if static else -1, inputs.shape[-1]])
    return Positions(tokens, mask, gate_id)


def split_positions(positions: Positions, inputs: tf.Tensor, shards: Shards) -> Positions:
    """On a mesh: split over the devices."""
    if _is_whole(inputs, shards):
        # They are whole already, but DTensor guesses their gradient's layout, wrongly after an embedding.
        positions = positions._replace(tokens=shards.whole(positions.tokens))
    return Positions(*(None if part is None else shards.relayout_batch(part) for part in positions))


def restore(outputs: tf.Tensor, inputs: tf.Tensor, shards: Shards | None) -> tf.Tensor:
    """Outputs `(T, D)` in the shape of the inputs that the positions are of."""
    if shards is not None and _is_whole(inputs, shards):
        outputs = shards.whole(outputs)
    if inputs.shape.is_fully_defined():
        return tf.reshape(outputs, inputs.shape)
    return tf.ensure_shape(tf.reshape(outputs, tf.shape(inputs)), inputs.shape)


def _is_whole(inputs, shards):
    """Whether a batch is not split, but on every device."""
    return not shards.splits_batch(inputs.shape[0])
