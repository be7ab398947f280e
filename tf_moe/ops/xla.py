"""What XLA makes different. The private parts of TensorFlow that tell about XLA are imported here alone.

`tests/ops/test_xla.py` fails if an upgrade takes them away or changes what they say.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

# Nothing public tells. Keras 2, tf.cond and tf.while_loop ask the same question in the same way.
from tensorflow.python.ops import control_flow_util


def compiled_by_xla() -> bool:
    """True while tracing inside `tf.function(jit_compile=True)`, also in what that calls, loops over and branches on.

    Shapes must be static there, and loops over exact sizes impossible; elsewhere these are what is fastest.

    Ask in the forward pass: a hand-written gradient may be traced outside of the function that is compiled.
    """
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def not_before(tensor: tf.Tensor, event: tf.Tensor, under_xla: bool) -> tf.Tensor:
    """The same tensor, available only once `event` has been computed.

    What is computed from it is not merged by the graph optimizer with the same computation done earlier. (XLA on the
    CPU drops the barrier and merges all the same.)

    Args:
        tensor: Any tensor.
        event: Any tensor.
        under_xla: What `compiled_by_xla` said; XLA ignores the control dependencies that serve elsewhere.
    """
    if under_xla:
        return xla.optimization_barrier(tensor, event)[0]
    with tf.control_dependencies([event]):
        return tf.identity(tensor)
