"""Hash routing: which experts a token goes to is fixed, and nothing is learned."""

import math

import keras
import numpy as np
import tensorflow as tf

from tf_moe.gates.gate import Gate
from tf_moe.gates.numbers import check_choice
from tf_moe.gates.routing import Routing, routing_of_choices
from tf_moe.ops.masks import mask_rows
from tf_moe.ops.ties import code_tokens

# Numbers in a table of assignments, about: a megabyte, and rows for 65,536 ids with k = 4.
_TABLE = 2**18


@keras.saving.register_keras_serializable(package="tf_moe")
class Hash(Gate):
    """Hash routing: each token id is assigned to k different experts at random, once and for all, with weights 1/k.

    A control without learning: what a gate that learns is worth shows against it. `gate_id` are the ids of the tokens,
    any integers, and are to be passed down to the layer, wherever in the model it is:

    ```python
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(10_000, 512)(ids)
    outputs = tf_moe.layers.SparseMoE(64, 1024, k=2, gate="hash")(x, gate_id=ids)
    ```

    Of any vocabulary of ids 0 to V - 1, every expert has the same number, within one; how many tokens these are is up
    to how often they come. Ids that are some 2^18 / k apart have the same experts (`period`).

    Without `gate_id`, a code of the token's content stands for its id: the one that breaks ties in other gates, made by
    comparing neighbouring features. Equal tokens have the same experts, and slightly different ones mostly do; but it
    is no word's id, for a word's vector changes while the layers below learn, and with its context.

    There are no weights. Since nothing is to be learned from them, a `SparseMoE` with this gate has no balance losses
    unless it is given weights for them.

    Args:
        num_experts: Number of experts E.
        k: Number of experts for a token.
        seed: Integer seed of the assignment. It is in the config, so a model that is loaded has the same. Default None,
            which is 0: unlike noise, the assignment must be that which the experts were trained with.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If not 1 <= k <= num_experts.

    Example:

    >>> gate = tf_moe.gates.Hash(num_experts=8, k=2)
    >>> gate(tf.random.normal([8, 16]), gate_id=tf.range(8)).load
    <tf.Tensor: shape=(8,), dtype=float32, numpy=array([2., 2., 2., 2., 2., 2., 2., 2.], dtype=float32)>

    Reference: Roller et al. (2021), Hash Layers For Large Sparse Models (https://arxiv.org/abs/2106.04426).
    """

    balance_weight = 0.0

    def __init__(self, num_experts: int, k: int, seed: int | None = None, **kwargs):
        super().__init__(*check_choice(num_experts, k), seed=seed, **kwargs)
        self._table = assignments(self.num_experts, self.k, self.seed or 0)

    @property
    def takes_gate_id(self) -> bool:
        """True; without one it goes by the content."""
        return True

    @property
    def period(self) -> int:
        """How far apart ids are that have the same experts for want of room in the table."""
        return len(self._table)

    def build(self, input_shape):
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: input_shape[-1]})

    def call(self, inputs, mask=None, training=False, gate_id=None) -> Routing:
        ids = tf.cast(code_tokens(inputs), tf.int64) if gate_id is None else gate_id
        row = tf.cast(tf.math.floormod(ids, self.period), tf.int32)
        index = tf.gather(tf.constant(self._table), row)
        weights = mask_rows(tf.ones_like(index, tf.float32) / self.k, mask)
        return routing_of_choices(index, weights, self.num_experts)


def assignments(num_experts: int, k: int, seed: int) -> np.ndarray:
    """Random experts for each of many ids, k different ones, int32 `(ids, k)`.

    Of the first n ids, for any n, all experts have the same number, within one. So do the rows from one to another
    multiple of E / gcd(E, k), of which no two have the same experts in the same order.
    """
    rows = num_experts // math.gcd(num_experts, k)  # after which a permutation of the experts has been used up evenly
    blocks = max(1, _TABLE // (rows * k))
    # RandomState, whose numbers will never change. It takes 32 bits at a time.
    random = np.random.RandomState([seed % 2**32, seed // 2**32 % 2**32])
    permutations = np.argsort(random.random_sample((blocks, num_experts)), axis=1, kind="stable")
    # Each row takes the next k of its block's permutation, and around: so they differ, and all are used in turn.
    place = np.arange(rows * k).reshape(rows, k) % num_experts
    return permutations[:, place].reshape(blocks * rows, k).astype(np.int32)
