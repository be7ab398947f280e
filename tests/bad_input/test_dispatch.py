import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import NAN, BadInput
from tf_moe import dispatch

INDEX, WEIGHTS = tf.constant([[0], [1]]), tf.constant([[0.5], [0.5]])


class DispatchTest(BadInput):
    @parameterized.named_parameters(
        (
            "drop_by",
            lambda: dispatch.dispatch_capacity(INDEX, WEIGHTS, 2, 1, drop_by="wieght"),
            ValueError,
            "one of .'position', 'weight'.*drop_by='wieght'",
        ),
        (
            "drop_by_on_a_mesh",
            lambda: dispatch.dispatch_sharded(INDEX, WEIGHTS, 2, None, 1, drop_by=None),
            ValueError,
            "one of .'position', 'weight'.*drop_by=None",
        ),
        ("factor_negative", lambda: dispatch.capacity_of(9, 4, 2, -1), ValueError, "positive.*capacity_factor=-1"),
        ("factor_zero", lambda: dispatch.capacity_of(9, 4, 2, 0.0), ValueError, "capacity_factor=0.0"),
        ("factor_nan", lambda: dispatch.capacity_of(9, 4, 2, NAN), ValueError, "capacity_factor=nan"),
        ("factor_none", lambda: dispatch.capacity_of(9, 4, 2, None), ValueError, "capacity_factor=None"),
        ("factor_text", lambda: dispatch.capacity_of(9, 4, 2, "1"), ValueError, "capacity_factor='1'"),
        ("experts_zero", lambda: dispatch.capacity_of(9, 0, 2, 1.0), ValueError, "num_experts=0"),
        ("k_pair", lambda: dispatch.capacity_of(9, 4, (2, 1), 1.0), ValueError, r"k=\(2, 1\)"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)
