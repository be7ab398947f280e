import sys

from tests.base import TestCase
from tests.processes import run_python
from tf_moe.ops.onednn import has_onednn


class HasOneDNNTest(TestCase):
    def test_says_what_a_graph_becomes(self):
        """In a process with oneDNN the other way round. Where it is on, its operations stand in the graphs that run."""
        program = """
import tensorflow as tf
from tf_moe.ops.onednn import has_onednn
from tensorflow.python.eager import context

x = tf.random.normal([2, 64, 64])
context.context().enable_graph_collection()
tf.function(lambda x: tf.matmul(x, x))(x)
graphs = context.context().export_run_metadata().partition_graphs
print(has_onednn(), any("Mkl" in node.op for graph in graphs for node in graph.node))
"""
        said, seen = run_python("-c", program, TF_ENABLE_ONEDNN_OPTS=str(int(not has_onednn()))).stdout.split()
        self.assertEqual(said, seen)
        if sys.platform == "linux":  # elsewhere it may not be there at all
            self.assertEqual(said, str(not has_onednn()))
