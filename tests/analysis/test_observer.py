import keras
import numpy as np
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.analysis import DeadExperts, ExpertMonitor, measure_stability, measure_usage
from tf_moe.analysis.observer import Observer
from tf_moe.distribute import ExpertParallelStrategy
from tf_moe.layers import SparseMoE


class ObserverTest(TestCase):
    def test_decisions_metrics_and_traces(self):
        """One model for several checks: each tracing takes seconds."""
        moe = SparseMoE(5, 3, k=2, capacity_factor=1.0, name="z_first")
        last = SparseMoE((2, 3), 3, k=(1, 2), name="a_second")
        embedding = keras.layers.Embedding(20, 6, mask_zero=True)
        inputs = keras.Input((None,), dtype="int32")
        model = keras.Model(inputs, last(moe(moe(embedding(inputs)))))  # one layer is called twice
        moe.gate.kernel.assign(self.normal(6, 5))
        traces, call = [], model.call
        model.call = lambda *args, **kwargs: traces.append(1) or call(*args, **kwargs)
        for variable in model.metrics_variables:
            variable.assign(3.0)
        observer = Observer(model)
        for shape in ((3, 4), (2, 7), (6, 2)):
            ids = self.rng.integers(0, 20, shape)
            found = observer((ids, None))
            self.assertEqual(list(found), ["z_first", "a_second"])  # as they are called
            embedded = embedding(ids)
            first = moe.route(embedded, mask=ids != 0)
            second = moe.route(moe(embedded, mask=ids != 0), mask=ids != 0)
            self.assertAllEqual(
                found["z_first"].expert_index, np.concatenate([first.expert_index, second.expert_index])
            )
            self.assertEqual((found["z_first"].calls, found["a_second"].calls), ([ids.size] * 2, [ids.size]))
            weights = np.concatenate([first.combine_weights, second.combine_weights])
            self.assertAllClose(found["z_first"].gate, weights)
            self.assertEqual(found["z_first"].chosen.sum(), 2 * 2 * (ids != 0).sum())
            capacity = -(-ids.size * 2 // 5)
            dropped = sum(max(n - capacity, 0) for one in (first, second) for n in one.load.numpy())
            self.assertEqual(found["z_first"].dropped, dropped)
            self.assertEqual(found["a_second"].dropped, 0)
            for variable in moe.metrics_variables + last.metrics_variables:
                variable.assign(3.0)  # the calls of the layer above have changed them
            observer(ids)
            self.assertAllEqual([float(variable) for variable in model.metrics_variables], [3.0] * 20)
        self.assertLessEqual(len(traces), 2)  # the first shape, and any

    @parameterized.named_parameters(
        ("usage", lambda model, batches: measure_usage(model, batches)),
        ("stability", lambda model, batches: measure_stability(model, model, batches)),
        ("dead_experts", lambda model, batches: DeadExperts(batches)),
        ("monitor", lambda model, batches: ExpertMonitor(batches)),
    )
    def test_a_batch_in_place_of_batches(self, look):
        model, x = keras.Sequential([keras.Input((6,)), SparseMoE(2, 3, k=1)]), self.normal(4, 6)
        for batch, message in (
            ((x, x), r"Received: a tuple. Pass \[\(x, y\)\]"),
            ({"inputs": x}, r"Received: a dict of \['inputs'\]. Pass \[inputs\]"),
            (x, r"Received: an array of shape \(4, 6\). Pass \[x\]"),
            (keras.ops.convert_to_tensor(x), r"an array of shape \(4, 6\)"),
        ):
            with self.assertRaisesRegex(ValueError, message):
                look(model, batch)

    def test_no_batch(self):
        model = keras.Sequential([keras.Input((6,)), SparseMoE(2, 3, k=1)])
        with self.assertRaisesRegex(ValueError, "as there was no batch"):
            measure_usage(model, [])

    def test_mesh(self):
        with ExpertParallelStrategy(["CPU:0", "CPU:1"]).scope():
            model = keras.Sequential([keras.Input((6,)), SparseMoE(2, 3, k=1)], name="mine")
        with self.assertRaisesRegex(ValueError, "Received: 'mine', whose weights are on one. Save it"):
            Observer(model)
