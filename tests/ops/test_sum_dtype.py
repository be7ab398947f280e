import tensorflow as tf

from tests.base import TestCase
from tf_moe.ops.sum_dtype import sum_dtype


class SumDtypeTest(TestCase):
    def test_half_precision_alone_is_widened(self):
        for dtype, expected in (("bfloat16", "float32"), ("float16", "float32"), ("float32",) * 2, ("float64",) * 2):
            for given in (dtype, tf.as_dtype(dtype)):
                self.assertEqual(sum_dtype(given), expected)
