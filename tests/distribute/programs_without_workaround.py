"""Compiles ten programs with loops on a mesh, without the workaround of `tf_moe.distribute.programs`; prints how many
could not be. Then whether a mesh stays the default one after an error, as `tf_moe.distribute.extended` says."""

import tensorflow as tf
from tensorflow.experimental import dtensor

PROGRAMS = 10

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
mesh = dtensor.create_mesh([("x", 2)], devices=["CPU:0", "CPU:1"])
layout = dtensor.Layout([dtensor.UNSHARDED, "x", dtensor.UNSHARDED], mesh)
weight = dtensor.DVariable(dtensor.copy_to_mesh(tf.ones([3]), dtensor.Layout.replicated(mesh, 1)))


@tf.function
def program(x, number):
    with tf.name_scope(f"program{number}"):
        states = [tf.zeros([x.shape[1], 3]) + i for i in range(3)]
        first = tf.reshape(tf.tile(weight, [3]), [3, 3])
        second = first + 1.0
        for _ in range(2):

            def body(t, *states):
                y = tf.matmul(tf.matmul(tf.gather(x, t), first), second)
                return t + 1, *[tf.tanh(y + state) for state in states]

            _, *states = tf.while_loop(lambda t, *_: t < 2, body, (0, *states))
        return states


failed = 0
for n in range(PROGRAMS):
    x = dtensor.pack([tf.ones([6, 2 + n, 3])] * 2, layout)
    try:
        program(x, n)
    except tf.errors.OpError as error:
        if "Cannot add function" not in str(error):
            raise
        failed += 1
print(f"failed: {failed}")

try:
    with dtensor.default_mesh(mesh):
        raise KeyError
except KeyError:
    print(f"mesh left behind: {dtensor.get_default_mesh() is not None}")
