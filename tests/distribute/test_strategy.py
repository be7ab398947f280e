"""The strategy: meshes, variables on them, batches, and what `run` takes and gives."""

from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from tensorflow.experimental import dtensor

from tests.base import TestCase
from tests.distribute.helpers import compiled, language_model
from tests.mesh.helpers import MESHES, specs_of, strategy_on
from tests.processes import run_python
from tf_moe import initializers
from tf_moe.distribute import batches
from tf_moe.distribute.strategy import ExpertParallelStrategy
from tf_moe.distribute.values import OnMesh
from tf_moe.layers import SparseMoE

# Prints the loss of a step, which is not 0.
STEP = """
import os
from unittest import mock
import keras
import numpy as np
import tests.base
from tests.mesh.helpers import strategy_on
import tf_moe

with mock.patch.object(type(os.environ), "__setitem__"):  # by which it would be switched off
    strategy = strategy_on(2)
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), tf_moe.layers.SparseMoE(4, 3, k=2), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
x, y = np.ones((8, 3), "float32"), np.full((8, 2), 3, "float32")
print("loss:", model.train_on_batch(x, y, return_dict=True)["loss"])
"""


class MeshTest(TestCase):
    def test_the_combination_of_all_reduces_is_still_wrong(self):
        run = run_python("-c", STEP, code=None, DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION="1")
        right = run.returncode == 0 and "loss: 0.0" not in run.stdout
        self.assertFalse(right, "ExpertParallelStrategy need not switch it off any more.")
        if run.returncode:
            self.assertIn("does not dominate", run.stderr)

    def test_all_devices_by_default(self):
        strategy = ExpertParallelStrategy()
        self.assertEqual(dict(zip(strategy.mesh.dim_names, strategy.mesh.shape(), strict=True)), {"expert": 8})
        self.assertEqual(strategy.num_replicas_in_sync, 1)
        self.assertTrue(strategy.is_chief)

    def test_mesh_shape(self):
        for shape, dims in (
            ({"expert": 4}, {"expert": 4}),
            ({"replica": np.int64(2), "expert": np.int32(2)}, {"replica": 2, "expert": 2}),
            ({"replica": 1, "expert": 4}, {"expert": 4}),
            ({"expert": 2, "replica": 2}, {"replica": 2, "expert": 2}),
            ({"replica": 4}, {"replica": 4, "expert": 1}),
        ):
            mesh = ExpertParallelStrategy([f"CPU:{n}" for n in range(4)], shape).mesh
            self.assertEqual(dict(zip(mesh.dim_names, mesh.shape(), strict=True)), dims)

    @parameterized.parameters(
        ({"replica": 2, "expert": 4},), ({"expert": 0},), ({"experts": 4},), ({"expert": 4.0},), ({},)
    )
    def test_mesh_shapes_that_do_not_fit(self, shape):
        with self.assertRaisesRegex(ValueError, r"r \* e = 4, the number of devices. Received: mesh_shape={"):
            ExpertParallelStrategy([f"CPU:{n}" for n in range(4)], shape)


class VariablesTest(TestCase):
    def bank(self, strategy, num_experts=8, **arguments):
        with strategy.scope():
            layer = SparseMoE(num_experts, 3, k=2, use_bias=True, **arguments)
            layer.build((None, 4))
        return layer

    @parameterized.named_parameters((n, MESHES[n]) for n in ("2", "2x2"))
    def test_layouts(self, mesh):
        """Experts and what the optimizer keeps for them are split on the first axis, everything else is replicated."""
        with strategy_on(*mesh).scope():
            model = compiled(language_model(use_bias=True), keras.optimizers.Adam(amsgrad=True))
            model.optimizer.build(model.trainable_variables)
        split = 0
        for variable in model.variables + model.optimizer.variables:
            specs = specs_of(variable.value)
            by_expert = "experts" in variable.path
            split += by_expert
            self.assertEqual(
                specs, ["expert" if by_expert and n == 0 else "" for n in range(len(specs))], variable.path
            )
        self.assertEqual(split, 4 + 3 * 4)

    def test_slots_of_other_shapes(self):
        """Adafactor does not say which weight its averages of rows and columns belong to: they are not split."""
        strategy = strategy_on(2)
        kernel = self.bank(strategy).experts.hidden_kernel
        with strategy.scope():
            optimizer = keras.optimizers.Adafactor()
            optimizer.build([kernel])
        by_shape = {tuple(v.shape): specs_of(v.value) for v in optimizer.variables}
        self.assertEqual(by_shape[8, 4, 3], ["expert", "", ""])
        self.assertEqual(by_shape[8, 4], ["", ""])

    def test_values_go_in_and_out_whole(self):
        layer = self.bank(strategy_on(2))
        for variable in (layer.experts.hidden_kernel, layer.gate.kernel):
            value = self.normal(*variable.shape)
            variable.assign(value)
            self.assertAllEqual(variable.numpy(), value)
            variable.assign(keras.ops.convert_to_tensor(2 * value))
            self.assertAllEqual(variable.numpy(), 2 * value)
        weights = [self.normal(*w.shape) for w in layer.get_weights()]
        layer.set_weights(weights)
        for ours, expected in zip(layer.get_weights(), weights, strict=True):
            self.assertAllEqual(ours, expected)
        self.assertEqual(specs_of(layer.experts.hidden_kernel.value), ["expert", "", ""])
        other = self.bank(strategy_on(2))
        other.experts.hidden_kernel.assign(layer.experts.hidden_kernel)
        self.assertAllEqual(other.experts.hidden_kernel, layer.experts.hidden_kernel.numpy())

    def test_uneven_experts(self):
        message = r"evenly over the 4 shards.*Received: num_experts=6. The nearest that fits is 4 or 8.*"
        with self.assertRaisesRegex(ValueError, message + '{"replica": 2, "expert": 2}'):
            self.bank(strategy_on(4), 6)
        with self.assertRaisesRegex(
            ValueError, 'num_experts=3. The nearest that fits is 4; .*"replica": 4, "expert": 1'
        ):
            self.bank(strategy_on(4), 3)
        self.bank(strategy_on(4, 2), 6)

    @parameterized.parameters(
        (keras.initializers.HeNormal, initializers.LARGEST_DRAW),  # drawn at once
        (keras.initializers.HeNormal, 10),  # expert by expert
        (keras.initializers.Orthogonal, initializers.LARGEST_DRAW),
    )
    def test_initial_values_do_not_depend_on_the_devices(self, initializer, largest_draw):
        initializer = initializer(seed=3)
        with mock.patch.object(initializers, "LARGEST_DRAW", largest_draw):
            one = SparseMoE(4, 3, k=2, use_bias=True, kernel_initializer=initializer)
            one.build((None, 4))
            for mesh in (MESHES["4"], MESHES["2x2"]):
                many = self.bank(strategy_on(*mesh), 4, kernel_initializer=initializer)
                for ours, expected in zip(many.get_weights(), one.get_weights(), strict=True):
                    self.assertAllEqual(ours, expected)
        self.assertNotAllClose(one.experts.hidden_kernel[0], one.experts.hidden_kernel[1])

    def test_large_banks_are_never_made_whole(self):
        drawn = []

        class Watched(keras.initializers.GlorotUniform):
            def __call__(self, shape, dtype=None):
                drawn.append(shape[0])
                return super().__call__(shape, dtype)

        with mock.patch.object(initializers, "LARGEST_DRAW", 10):
            self.bank(strategy_on(4), kernel_initializer=Watched(seed=1))
        self.assertEqual(drawn, [1] * 16)  # each of eight experts of two kernels, once


class RunTest(TestCase):
    def test_batches_of_a_dataset(self):
        strategy = strategy_on(4, 2)
        x = self.normal(11, 3)
        batches = list(strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices({"x": x}).batch(8)))
        self.assertEqual([batch["x"].shape for batch in batches], [(8, 3), (3, 3)])
        self.assertEqual([specs_of(batch["x"].tensor)[0] for batch in batches], ["expert", ""])
        (whole,) = strategy.experimental_local_results(batches[0]["x"])
        self.assertAllEqual(whole, x[:8])
        self.assertIsInstance(batches[0]["x"], OnMesh)
        self.assertEqual(batches[0]["x"].dtype, tf.float32)

    def test_datasets_of_a_process(self):
        strategy, contexts = strategy_on(2), []

        def dataset(context):
            contexts.append((context.num_input_pipelines, context.input_pipeline_id))
            return tf.data.Dataset.range(4).batch(context.get_per_replica_batch_size(4))

        (batch,) = strategy.distribute_datasets_from_function(dataset)
        self.assertAllEqual(strategy.experimental_local_results(batch)[0], range(4))
        self.assertEqual(contexts, [(1, 0)])

    def test_policies_of_reading(self):
        def batches(policy):
            options = tf.data.Options()
            options.experimental_distribute.auto_shard_policy = policy
            dataset = tf.data.Dataset.range(4).batch(4).with_options(options)
            return list(strategy_on(2).experimental_distribute_dataset(dataset))

        policies = tf.data.experimental.AutoShardPolicy
        for policy in (policies.AUTO, policies.DATA, policies.OFF):  # all the same to one process
            self.assertLen(batches(policy), 1)
        with self.assertRaisesRegex(ValueError, "auto_shard_policy=FILE. Take this process's files"):
            batches(policies.FILE)

    def test_own_batches_of_processes_with_the_same_examples(self):
        strategy, options = strategy_on(2), tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        dataset = tf.data.Dataset.range(4).batch(4).with_options(options)
        message = r"OFF.*in a loop of your own.*distribute_datasets_from_function.*fit does not take"
        with (
            mock.patch.object(batches.dtensor, "num_clients", return_value=2),
            self.assertRaisesRegex(ValueError, message),
        ):
            strategy.experimental_distribute_dataset(dataset)

    def test_what_cannot_be_a_batch(self):
        strategy = strategy_on(2)
        for value in (tf.ragged.constant([[1], [2, 3]]), tf.sparse.eye(2), tf.constant(["a", "b"])):
            with self.assertRaisesRegex(ValueError, "dense tensors of numbers. Received"):
                next(iter(strategy.experimental_distribute_dataset([value])))

    def test_a_loop_of_ones_own(self):
        """`run`, `reduce` and `experimental_local_results` in a custom training loop."""
        strategy = strategy_on(2)
        with strategy.scope():
            layer = SparseMoE(4, 3, k=2, seed=1)
            layer.build((None, 3))

        @tf.function
        def step(x):
            def run(x):
                y = layer(x)
                return y, tf.reduce_sum(y)

            y, total = strategy.run(run, (x,))
            return y, strategy.reduce("sum", total, axis=None)

        x = self.normal(8, 3)
        (batch,) = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(x))
        y, total = step(batch)
        self.assertAllEqual(strategy.gather(y, axis=0), strategy.experimental_local_results(y)[0])
        (y,) = strategy.experimental_local_results(y)
        one = SparseMoE(4, 3, k=2, seed=1)
        one.build((None, 3))
        one.set_weights(layer.get_weights())
        self.assertAllClose(y, one(x), rtol=1e-4, atol=1e-5)
        self.assertAllClose(total, tf.reduce_sum(y), rtol=1e-4, atol=1e-4)

    def test_reduce(self):
        strategy = strategy_on(2)
        x = tf.constant(self.normal(3, 2))
        self.assertAllClose(strategy.reduce("sum", x, axis=0), tf.reduce_sum(x, 0))
        self.assertAllClose(strategy.reduce(tf.distribute.ReduceOp.MEAN, x, axis=1), tf.reduce_mean(x, 1))
        self.assertAllEqual(strategy.reduce("MEAN", OnMesh(x), axis=None), x)

    def test_an_error_leaves_no_mesh_behind(self):
        def fail(x):
            raise ValueError("mine")

        with self.assertRaisesRegex(ValueError, "mine"):
            strategy_on(2).run(fail, (tf.constant(1.0),))
        self.assertIsNone(dtensor.get_default_mesh())

    def test_unknown_shapes(self):
        strategy = strategy_on(2)

        @tf.function(input_signature=[tf.TensorSpec([None, 3])])
        def step(x):
            return strategy.run(lambda x: x, (x,))

        with self.assertRaisesRegex(ValueError, r"all shapes are static. Received: a batch of shape \(None, 3\)"):
            step(self.normal(4, 3))
