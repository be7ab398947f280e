"""Memory over many steps, and of one step whose loads are as uneven as can be. Measured in processes of their own."""

import functools
import gc
import multiprocessing
import unittest
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tf_moe.layers import LSTM, SparseMoE
from tf_moe.optimizers import FactoredAdam

STATUS = Path("/proc/self/status")
STEPS = 2_000


def memory(kind):
    """Bytes this process has ("VmRSS"), or has had at most ("VmHWM")."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(kind))


def in_own_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def forms_of(model, method):
    """Functions that train a model on a batch, or compute its output."""
    of_any_shape = functools.partial(tf.function, input_signature=[tf.TensorSpec([None, None, 3])])
    if method == "infer":
        return [model.predict_on_batch, of_any_shape(model)]
    model.compile(FactoredAdam(1e-3), "mse")
    # train_on_batch resets metrics one by one, which takes longer than the step.
    return [lambda x: model.train_on_batch(x, x), *[of_any_shape(lambda x: model.train_step((x, x)))] * 19]


def growth(method):
    """What is left behind by 2000 steps of many shapes and routings, after as many: bytes and Python objects.

    The least of four such times. The allocator takes more now and then, whoever asks; a leak is in all of them.
    """
    tf.config.threading.set_inter_op_parallelism_threads(1)  # so small a step is faster on one thread
    tf.config.threading.set_intra_op_parallelism_threads(1)
    models = [
        keras.Sequential([keras.Input((None, 3)), LSTM(3, return_sequences=True), SparseMoE(3, 2, k=2)]),
        keras.Sequential([keras.Input((None, 3)), SparseMoE(3, 2, k=1, capacity_factor=0.8)]),
    ]
    forms = [form for model in models for form in forms_of(model, method)]
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((batch, time, 3)).astype("float32") for batch in (1, 2, 4) for time in (1, 2)]

    taken = []
    for _ in range(5):
        for n in range(STEPS):
            forms[n % len(forms)](inputs[n // len(forms) % len(inputs)])
        gc.collect()
        taken.append((memory("VmRSS"), len(gc.get_objects())))
    return np.diff(taken, axis=0).min(axis=0)


# Of the layer that is asked for more than its share: a weight is little beside a row of each of its many tokens.
TOKENS, EXPERTS, WIDTH, HIDDEN, K = 32_768, 64, 64, 128, 4


def peak_of_uneven_loads():
    """The most bytes that inference takes with routings that nobody would wish for, and how many rows they have."""
    layer = SparseMoE(EXPERTS, HIDDEN, k=K)
    layer.build((None, WIDTH))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, WIDTH), "float32")
    x[:, 0] = 10
    x = tf.constant(x)
    kernel = rng.standard_normal((WIDTH, EXPERTS), "float32") / 20
    function = tf.function(layer, input_signature=[tf.TensorSpec([None, WIDTH])])
    for form in (layer, function):
        form(x[:300])
    before, largest = memory("VmRSS"), []
    for favoured in (1, K, EXPERTS // 2):
        kernel[0] = 0
        kernel[0, :favoured] = 100
        layer.gate.kernel.assign(kernel)
        for form in (layer, function):
            form(x)
        largest.append(int(tf.reduce_max(layer.gate(x).load)))
    return memory("VmHWM") - before, largest


@unittest.skipUnless(STATUS.exists(), "needs Linux's account of a process's memory")
class MemoryTest(TestCase):
    def check_steady(self, method):
        grown, objects = in_own_process(growth, method)
        self.assertLess(grown, 200 * STEPS)
        self.assertLess(objects, STEPS // 100)

    def test_ten_thousand_training_steps(self):
        self.check_steady("train")

    def test_ten_thousand_inferences(self):
        self.check_steady("infer")

    def test_inference_is_bounded_whatever_the_routing(self):
        """As the documentation of the layer says; with places for all tokens at every expert it would be 16 times S."""
        peak, largest = in_own_process(peak_of_uneven_loads)
        self.assertEqual(largest[:2], [TOKENS, TOKENS])  # every token went to one expert, and to K
        rows = 1.7 * K * TOKENS + 48 * EXPERTS
        bound = 4 * rows * (4 * WIDTH + 2 * HIDDEN) + 32 * TOKENS * EXPERTS
        self.assertLess(peak, bound)
