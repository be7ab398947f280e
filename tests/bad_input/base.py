"""What the tables of bad calls share: a row is (name, call, exception, pattern), the pattern holding the bad value."""

import keras
import numpy as np

from tests.base import TestCase
from tf_moe.layers import SparseMoE

NAN, INF = float("nan"), float("inf")


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def moe(**arguments):
    return SparseMoE(**{"num_experts": 8, "expert_hidden": 3, "k": 2, **arguments})


def dense_model(width=3):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(width)])


def moe_model(**arguments):
    return keras.Sequential([keras.Input((4,)), moe(**arguments)])


class BadInput(TestCase):
    def check(self, call, error, pattern):
        with self.assertRaisesRegex(error, pattern):
            call()
