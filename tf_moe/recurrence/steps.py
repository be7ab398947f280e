"""A loop over time of any step: its gradient computes each step again, and that of each matrix once for all steps."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_moe.ops.sum_dtype import sum_dtype
from tf_moe.recurrence.buffers import ListBuffers, StaticBuffers

Tensors = Sequence[tf.Tensor]
Product = Callable[[int, tf.Tensor], tf.Tensor]
Step = Callable[[Tensors, Tensors, Tensors, Product], Tensors]


def scan_steps(
    step: Step,
    inputs: Tensors,
    state: Tensors,
    matrices: Tensors = (),
    shared: Tensors = (),
    *,
    mask: tf.Tensor | None = None,
    buffers: type[ListBuffers] | type[StaticBuffers] = ListBuffers,
) -> list[tf.Tensor]:
    """Run `state = step(inputs_t, state, shared, product)` over time, time first; return every state.

    Only the states are kept for the backward pass, which computes each step again. It adds up the gradients of
    `shared` step by step. Those of `matrices`, which would cost a pass over each of them in every step, are one product
    over all steps: of these a step sees only `product(n, a)`, a [B, I] times matrix n.

    Args:
        step: A deterministic function of its four arguments alone (no variables, and no tensors that want a gradient):
            (inputs of the step [B, ...], state, shared, product) -> new state. It must use each matrix exactly once.
        inputs: Tensors [T, B, D] of floats, T at least 1.
        state: Tensors [B, P] of floats, before the first step.
        matrices: Tensors [I, O], or [B, I, O] with a matrix for each row.
        shared: Other tensors of floats that every step uses.
        mask: [T, B] booleans or None. A False step leaves the state as it was.
        buffers: ListBuffers, or StaticBuffers where TensorArray cannot be used; these need static shapes.

    Raises:
        ValueError: When the gradient is taken, if a matrix is not used exactly once.

    Returns:
        For each part of the state, its values after every step, [T, B, P].
    """
    inputs, state = [tf.convert_to_tensor(x) for x in inputs], [tf.convert_to_tensor(x) for x in state]
    matrices, shared = [tf.convert_to_tensor(x) for x in matrices], [tf.convert_to_tensor(x) for x in shared]
    if buffers.pieces == 1:
        return _scan(step, inputs, state, matrices, shared, mask, buffers)
    total, found = inputs[0].shape[0], []
    length = -(-total // buffers.pieces)
    for start in range(0, total, length):
        piece = slice(start, min(start + length, total))
        masked = None if mask is None else mask[piece]
        found.append(_scan(step, [x[piece] for x in inputs], state, matrices, shared, masked, buffers))
        state = [buffers.row(x, piece.stop - piece.start - 1) for x in found[-1]]
    return [tf.concat(pieces, 0) for pieces in zip(*found, strict=True)]


def _scan(step, inputs, state, matrices, shared, mask, buffers):
    steps = inputs[0].shape[0] if inputs[0].shape[0] is not None else tf.shape(inputs[0])[0]
    _agree_on_batch(inputs, state)

    def masked(t, new, old):
        if mask is None:
            return new
        counts = tf.expand_dims(buffers.row(mask, t), -1)
        return [tf.where(counts, a, b) for a, b in zip(new, old, strict=True)]

    def forward(inputs, state, matrices, shared):
        """The buffers of every state."""

        def product(n, a):
            return _product(a, matrices[n])

        def body(t, old, kept):
            new = masked(t, step([buffers.row(x, t) for x in inputs], old, shared, product), old)
            return t + 1, list(new), [buffers.write(b, t, x) for b, x in zip(kept, new, strict=True)]

        kept = [buffers.empty(steps, x) for x in state]
        return tf.while_loop(lambda t, *_: t < steps, body, (0, list(state), kept))[2]

    def backward(inputs, state, matrices, shared, states, upstream):
        """The loop from the last step to the first; returns the gradients of all but the states."""
        before = [tf.concat([tf.expand_dims(a, 0), b], 0)[:-1] for a, b in zip(state, states, strict=True)]
        # A product that transposes its right side is up to three times slower than one that finds it transposed.
        turned = [tf.transpose(m, [*range(m.shape.rank - 2), m.shape.rank - 1, m.shape.rank - 2]) for m in matrices]

        def body(t, d_state, d_shared, d_inputs, factors):
            d_state = [d + buffers.row(u, t) for d, u in zip(d_state, upstream, strict=True)]
            now, old = [buffers.row(x, t) for x in inputs], [buffers.row(x, t) for x in before]
            used, seen = {}, set()

            def product(n, a):
                if n in seen:
                    raise ValueError(
                        f"A step must use each matrix exactly once. Received: one that uses number {n} twice."
                    )
                seen.add(n)

                @tf.custom_gradient
                def multiply(a):
                    def gradient(dy):
                        used[n] = a, dy
                        return _product(dy, turned[n])

                    return _product(a, matrices[n]), gradient

                return multiply(a)

            with tf.GradientTape() as tape:
                tape.watch([now, old, shared])
                new = masked(t, step(now, old, shared, product), old)
            if missing := {*range(len(matrices))} - seen:
                raise ValueError(f"A step must use each matrix exactly once. Received: one without numbers {missing}.")
            zero = tf.UnconnectedGradients.ZERO
            d_now, d_state, d_more = tape.gradient(new, (now, old, shared), d_state, unconnected_gradients=zero)
            d_shared = [total + tf.cast(d, total.dtype) for total, d in zip(d_shared, d_more, strict=True)]
            d_inputs = [buffers.write(b, t, d) for b, d in zip(d_inputs, d_now, strict=True)]
            pairs = zip(factors, [used[n] for n in range(len(matrices))], strict=True)
            factors = [[buffers.write(b, t, x) for b, x in zip(*pair, strict=True)] for pair in pairs]
            return t - 1, d_state, d_shared, d_inputs, factors

        def empty(size):
            return buffers.empty(steps, rows_of_zeros(state[0], size))

        loop = tf.while_loop(
            lambda t, *_: t >= 0,
            body,
            (
                steps - 1,
                [tf.zeros_like(x) for x in state],
                [tf.zeros_like(x, sum_dtype(x.dtype)) for x in shared],
                [empty(_size(x, -1)) for x in inputs],
                [[empty(_size(m, -2)), empty(_size(m, -1))] for m in matrices],
            ),
        )
        _, d_state, d_shared, d_inputs, factors = loop
        d_matrices = [
            _product_gradient(*(buffers.stack(b, steps) for b in pair), matrix, buffers)
            for pair, matrix in zip(factors, matrices, strict=True)
        ]
        d_shared = [tf.cast(d, x.dtype) for d, x in zip(d_shared, shared, strict=True)]
        return *(buffers.stack(b, steps) for b in d_inputs), *d_state, *d_matrices, *d_shared

    @tf.custom_gradient
    def scan(*flat):
        arguments = tf.nest.pack_sequence_as((inputs, state, matrices, shared), flat)
        states = [buffers.stack(b, steps) for b in forward(*arguments)]
        return states, lambda *upstream: backward(*arguments, states, upstream)

    return scan(*inputs, *state, *matrices, *shared)


def _agree_on_batch(inputs, state):
    """What is known of the batch size may differ between tensors, and a loop's variables must keep their shapes."""
    batch = tf.TensorShape([None])
    for x in inputs:
        batch = batch.merge_with(x.shape[1:2])
    for x in state:
        batch = batch.merge_with(x.shape[:1])
    for x in inputs:
        x.set_shape(x.shape[:1].concatenate(batch).concatenate(x.shape[2:]))
    for x in state:
        x.set_shape(batch.concatenate(x.shape[1:]))


def _product(a, matrix):
    """Rows a [B, I] times a matrix [I, O], or each times its own of [B, I, O]."""
    return tf.matmul(a, matrix) if matrix.shape.rank == 2 else tf.einsum("bi,bio->bo", a, matrix)


def _product_gradient(a, dy, matrix, buffers):
    """The gradient of the matrix of `_product`, from a [T, B, I] and dy [T, B, O] of all steps."""
    return buffers.kernel_gradient(a, dy) if matrix.shape.rank == 2 else tf.einsum("tbi,tbo->bio", a, dy)


def _size(x, axis):
    return x.shape[axis] if x.shape[axis] is not None else tf.shape(x)[axis]


def rows_of_zeros(like: tf.Tensor, size: int) -> tf.Tensor:
    """Zeros [B, size] of the batch and dtype of `like`, and on a mesh split as it is."""
    return tf.reduce_sum(tf.zeros_like(like), -1, keepdims=True) + tf.zeros(tf.stack([size]), like.dtype)
