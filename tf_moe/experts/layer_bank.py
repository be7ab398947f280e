"""A bank of arbitrary Keras layers as experts."""

import keras
import tensorflow as tf

from tf_moe import checks
from tf_moe.mesh.device_groups import ShardedGroups
from tf_moe.ops.xla import compiled_by_xla


@keras.saving.register_keras_serializable(package="tf_moe")
class LayerBank(keras.layers.Layer):
    """E experts, each a Keras layer or model of its own that maps width D to width D.

    Args:
        layers: The experts, all different objects. Each sees a batch `(n, D)` of the tokens sent to it, n being 0 at
            times, and treats each row by itself: no `BatchNormalization` but a frozen one, whose statistics would be
            those of a few tokens, or of none. With a capacity n is C, and places that are left empty are rows of zeros:
            an `activity_regularizer` counts them, and their derivatives must be finite.
        recompute: Whether their activations are computed again in the backward pass instead of kept. Default False. A
            layer that changes a state of its own in training changes it twice.
        **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
        ValueError: If `layers` is no list of different Keras layers, `recompute` no boolean, if one layer does not keep
            the width, or if `recompute` would lose something of one: the random numbers it draws, which it asks for
            twice, or the gradient of an `activity_regularizer`. In training, if one has a `BatchNormalization` that is
            not frozen. When called on a mesh, or under XLA without a capacity.

    Call arguments:
        rows: `(S, D)`, sorted by expert; or `(E * C, D)`, C rows for each.
        counts: Int32 `(E,)`, rows of each expert.
        capacity: C, or None where rows are sorted without gaps.
        places: Always None.
        training: What the experts are told that take such an argument. Default False.

    Example:

    >>> experts = tf_moe.experts.LayerBank([keras.layers.Dense(8, "relu") for _ in range(3)])
    >>> experts(tf.ones([5, 8]), tf.constant([2, 0, 3])).shape  # two rows of expert 0, three of expert 2
    TensorShape([5, 8])
    """

    def __init__(self, layers: list[keras.layers.Layer], recompute: bool = False, **kwargs):
        kwargs.setdefault("name", "experts")
        super().__init__(**kwargs)
        if not isinstance(layers, (list, tuple)) or not layers:
            raise ValueError(
                f"layers must be a list of Keras layers, one for each expert. Received: layers={layers!r}."
            )
        for layer in layers:
            if not isinstance(layer, keras.layers.Layer):
                raise ValueError(f"Every expert must be a Keras layer or model. Received: {layer!r}.")
        if len({id(layer) for layer in layers}) < len(layers):
            raise ValueError(
                "Every expert must be a layer of its own, so a function that makes them must return a new layer each "
                f"time it is called. Received: {layers!r}, with one of them more than once."
            )
        self.layers = list(layers)
        self.recompute = checks.boolean("recompute", recompute)

    def build(self, input_shape):
        shape = (None, input_shape[-1])
        for layer in self.layers:
            # A symbolic call, by which Keras builds what has no `build` and infers what has no `compute_output_shape`.
            output = layer(keras.KerasTensor(shape, dtype=self.compute_dtype))
            output_shape = getattr(output, "shape", output)
            if output_shape != shape:
                raise ValueError(
                    f"Every expert must be a layer that maps width {shape[-1]} to width {shape[-1]}. Received: "
                    f"{layer!r}, which maps {shape} to {output_shape}."
                )
            if self.recompute and _draws(layer):
                raise ValueError(
                    "recompute=True computes experts twice, and this one would draw other random numbers the second "
                    f"time. Received: {layer!r}. Pass recompute=False, or experts without dropout."
                )
            if self.recompute and any(part.activity_regularizer for part in layer._flatten_layers()):
                raise ValueError(
                    "recompute=True keeps nothing of what is inside of experts, and an activity_regularizer would have "
                    f"no gradient. Received: {layer!r}. Pass recompute=False."
                )

    def call(
        self,
        rows: tf.Tensor,
        counts: tf.Tensor | ShardedGroups,
        capacity: int | tf.Tensor | None = None,
        places=None,
        training: bool = False,
    ) -> tf.Tensor:
        if isinstance(counts, ShardedGroups):
            raise ValueError(
                "Experts that are Keras layers cannot be split over the devices of a mesh: each has its own weights. "
                f"Received: {self.layers[0]!r} and so on, under ExpertParallelStrategy. Take SparseMoE's built-in "
                "experts (expert=None), or tf.distribute.MirroredStrategy, which gives every device all experts."
            )
        if training:
            self._check_statistics()
        if capacity is None and compiled_by_xla():
            raise ValueError(
                "Experts that are Keras layers get as many rows as the loads of each step say, and XLA needs shapes "
                "that do not depend on the data. Received: jit_compile=True and capacity_factor=None. Pass a "
                "capacity_factor, the built-in experts (expert=None), or jit_compile=False."
            )
        # Split at once: the gradient of each slice would be a tensor of all rows.
        if capacity is not None:
            pieces, unused = tf.split(rows, len(self.layers)), []
        else:
            sizes = tf.concat([counts, [tf.shape(rows)[0] - tf.reduce_sum(counts)]], axis=0)
            *pieces, rest = tf.split(rows, sizes, num=len(self.layers) + 1)
            unused = [tf.zeros_like(rest)]
        outputs = [
            tf.cast(self._expert(layer, piece, training), rows.dtype)
            for layer, piece in zip(self.layers, pieces, strict=True)
        ]
        return tf.concat(outputs + unused, axis=0)

    def takes_block(self, training: bool = False) -> bool:
        """Never: the rows of a layer have to follow one another."""
        return False

    def _check_statistics(self):
        """Raise ValueError for a layer that would take statistics over an expert's rows: of none they are NaN."""
        for layer in self.layers:
            for part in layer._flatten_layers():
                if isinstance(part, keras.layers.BatchNormalization) and part.trainable:
                    raise ValueError(
                        "Experts cannot have BatchNormalization in training: an expert gets few rows in some steps, "
                        f"and none in others. Received: {part!r} in {layer!r}. Take keras.layers.LayerNormalization, "
                        "or freeze it by trainable=False."
                    )

    def _expert(self, layer, rows, training):
        def expert(rows):
            # Told, since the backward pass that computes it again is in no call to ask. Keras leaves it out where a
            # layer has no such argument.
            return layer(rows, training=training)

        if rows.shape[0] == 0:  # known eagerly only, where some of Keras's operations cannot take it
            with keras.StatelessScope():  # the row is not there: no loss of its output, and no change of a state
                return expert(tf.zeros([1, *rows.shape[1:]], rows.dtype))[:0]
        return keras.remat(expert)(rows) if self.recompute else expert(rows)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in self.layers],
            "recompute": self.recompute,
        }

    @classmethod
    def from_config(cls, config):
        layers = [keras.saving.deserialize_keras_object(layer) for layer in config["layers"]]
        return cls(**{**config, "layers": layers})


def _draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer or one inside it owns a generator of random numbers, whose state is no weight."""
    return len(layer.variables) > len(layer.weights)
