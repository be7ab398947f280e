"""The loop of an LSTM over time, with its gradient written by hand."""

import tensorflow as tf

from tf_moe.recurrence.buffers import ListBuffers, StaticBuffers
from tf_moe.recurrence.lstm_gates import LSTMGates


def lstm_scan(
    z: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    projection_kernel: tf.Tensor | None = None,
    *,
    gates: LSTMGates,
    mask: tf.Tensor | None = None,
    dropout: list[tf.Tensor] | None = None,
    buffers: type[ListBuffers] | type[StaticBuffers] = ListBuffers,
    keep: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Run an LSTM over time, time first.

    A step is z_t + h @ recurrent_kernel -> gates -> output [-> @ projection_kernel] -> h. Everything that does
    not wait for the previous step is outside the loop: the input's product (the caller's), and here the gradients
    of both kernels, one product over all steps each.

    Args:
        z: [T, B, 4*units] floats. The input's part of the gates, bias included.
        recurrent_kernel: [P, 4*units]. P is the width of h: units, or that of the projection.
        h: [B, P]. State before the first step.
        c: [B, units]. Cell state before the first step.
        projection_kernel: [units, P] or None for none (then P = units).
        gates: LSTMGates. The elementwise part of the step.
        mask: [T, B] booleans or None. A False step leaves h and c as they were.
        dropout: Four [B, P] tensors that multiply h on its way to each of the gates, or None. No gradient.
        buffers: ListBuffers, or StaticBuffers where TensorArray cannot be used; these need a static T.
        keep: Boolean. Whether to keep what the backward pass needs. If False the backward pass runs the loop
            again: less memory when no gradient is expected, the same gradient if one is wanted after all.

    Returns:
        (h of every step [T, B, P], last h [B, P], last c [B, units]).

    Reference:
        Hochreiter & Schmidhuber 1997; the projection is that of Sak, Senior & Beaufays 2014, section 2.
    """
    # Indexed by tensors in the loop, and its variables: arrays and tf.Variables will not do.
    h, c = tf.convert_to_tensor(h), tf.convert_to_tensor(c)
    mask = None if mask is None else tf.convert_to_tensor(mask)
    options = {"gates": gates, "dropout": dropout, "buffers": buffers, "keep": keep}
    if buffers.pieces == 1 or z.shape[0] == 0:  # where there are no steps, there is nothing to cut
        return _scan(z, recurrent_kernel, h, c, projection_kernel, mask=mask, **options)
    outputs, length = [], -(-z.shape[0] // buffers.pieces)
    for start in range(0, z.shape[0], length):
        piece = slice(start, start + length)
        masked = None if mask is None else mask[piece]
        hs, h, c = _scan(z[piece], recurrent_kernel, h, c, projection_kernel, mask=masked, **options)
        outputs.append(hs)
    return tf.concat(outputs, 0), h, c


def _scan(z, recurrent_kernel, h, c, projection_kernel, *, gates, mask, dropout, buffers, keep):
    steps = z.shape[0] if z.shape[0] is not None else tf.shape(z)[0]
    product = RecurrentProduct(buffers, dropout)
    # What the layers around know of the batch size may differ, and a loop's variables must keep their shapes.
    batch = z.shape[1:2].merge_with(h.shape[:1]).merge_with(c.shape[:1])
    for state in (h, c):
        state.set_shape(batch.concatenate([None]))
    z.set_shape(z.shape[:1].concatenate(batch).concatenate([None]))

    def forward(z, recurrent_kernel, h, c, projection_kernel, keep):
        """The loop; returns its last (h, c), the buffer of every h, and those of what the gates keep of every step."""

        def body(t, h, c, hs, kept):
            z_t = buffers.row(z, t) + product.forward(h, recurrent_kernel)
            h_new, c_new, values = gates.forward(z_t, c)
            if projection_kernel is not None:
                h_new = tf.matmul(h_new, projection_kernel)
            if mask is not None:
                counts = tf.expand_dims(buffers.row(mask, t), -1)
                h_new, c_new = tf.where(counts, h_new, h), tf.where(counts, c_new, c)
            if keep:
                kept = tuple(buffers.write(buffer, t, x) for buffer, x in zip(kept, values, strict=True))
            return t + 1, h_new, c_new, buffers.write(hs, t, h_new), kept

        kept = tuple(buffers.empty(steps, c) for _ in range(gates.num_kept)) if keep else ()
        loop = tf.while_loop(lambda t, *_: t < steps, body, (0, h, c, buffers.empty(steps, h), kept))
        return loop[1:]

    def backward(saved, arguments, d_hs, d_h, d_c):
        """The loop from the last step to the first; returns the gradients of z, both kernels, h and c."""
        _, recurrent_kernel, h, c, projection_kernel = arguments
        hs, kept = saved[0], [buffers.stack(x, steps) for x in saved[1]]
        # A product that transposes its right side is up to three times slower than one that finds it transposed.
        recurrent_t = tf.transpose(recurrent_kernel)
        projection_t = None if projection_kernel is None else tf.transpose(projection_kernel)
        prepared = gates.prepare(*kept)
        counted = None if mask is None else tf.cast(tf.expand_dims(mask, -1), d_h.dtype)

        def body(t, d_h, d_c, dzs, d_projected):
            d_h += buffers.row(d_hs, t)
            d_h_skipped = d_c_skipped = None
            if mask is not None:
                counts = buffers.row(counted, t)
                d_h_skipped, d_c_skipped = d_h * (1 - counts), d_c * (1 - counts)
                d_h, d_c = d_h * counts, d_c * counts
            d_output = d_h if projection_t is None else tf.matmul(d_h, projection_t)
            dz, d_c = gates.backward([buffers.row(x, t) for x in prepared], d_output, d_c)
            d_projected = tuple(buffers.write(buffer, t, d_h) for buffer in d_projected)
            d_h = product.backward(dz, recurrent_t)
            if mask is not None:
                d_h, d_c = d_h + d_h_skipped, d_c + d_c_skipped
            return t - 1, d_h, d_c, buffers.write(dzs, t, dz), d_projected

        d_projected = () if projection_kernel is None else (buffers.empty(steps, h),)
        dzs = buffers.empty(steps, tf.concat([c, c, c, c], -1))
        loop = tf.while_loop(lambda t, *_: t >= 0, body, (steps - 1, d_h, d_c, dzs, d_projected))
        _, d_h, d_c, dzs, d_projected = loop
        dzs = buffers.stack(dzs, steps)
        h_before = tf.concat([tf.expand_dims(h, 0), hs], 0)[:-1]
        gradients = dzs, product.kernel_gradient(h_before, dzs), d_h, d_c
        if projection_kernel is None:
            return gradients
        return *gradients, buffers.kernel_gradient(gates.outputs(*kept), buffers.stack(d_projected[0], steps))

    @tf.custom_gradient
    def scan(z, recurrent_kernel, h, c, projection_kernel=None):
        arguments = z, recurrent_kernel, h, c, projection_kernel
        last_h, last_c, hs, kept = forward(*arguments, keep)
        hs = buffers.stack(hs, steps)

        def gradient(*upstream):
            again = kept if keep else forward(*arguments, True)[-1]
            return backward((hs, again), arguments, *upstream)

        return (hs, last_h, last_c), gradient

    return scan(z, recurrent_kernel, h, c, *([] if projection_kernel is None else [projection_kernel]))


class RecurrentProduct:
    """h @ recurrent_kernel and its gradients; with dropout, each gate sees h through a mask of its own."""

    def __init__(self, buffers: type[ListBuffers] | type[StaticBuffers], dropout: list[tf.Tensor] | None = None):
        self.buffers = buffers
        self.dropout = dropout

    def forward(self, h: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The product of h [B, P] and kernel [P, 4*units] -> [B, 4*units]."""
        if self.dropout is None:
            return tf.matmul(h, kernel)
        gates = zip(self.dropout, tf.split(kernel, 4, axis=1), strict=True)
        return tf.concat([tf.matmul(h * mask, part) for mask, part in gates], axis=1)

    def backward(self, dz: tf.Tensor, kernel_t: tf.Tensor) -> tf.Tensor:
        """The gradient of h; kernel_t is the transposed kernel [4*units, P]."""
        if self.dropout is None:
            return tf.matmul(dz, kernel_t)
        gates = zip(self.dropout, tf.split(dz, 4, axis=1), tf.split(kernel_t, 4, axis=0), strict=True)
        return tf.add_n([tf.matmul(part, kernel) * mask for mask, part, kernel in gates])

    def kernel_gradient(self, hs: tf.Tensor, dzs: tf.Tensor) -> tf.Tensor:
        """The gradient of the kernel from all steps: h before each step [T, B, P]; dzs [T, B, 4*units]."""
        if self.dropout is None:
            return self.buffers.kernel_gradient(hs, dzs)
        gates = zip(self.dropout, tf.split(dzs, 4, axis=2), strict=True)
        return tf.concat([self.buffers.kernel_gradient(hs * mask, part) for mask, part in gates], axis=1)
