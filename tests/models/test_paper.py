"""The named networks against the paper's tables, and against what they build."""

from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.analysis import count
from tf_moe.layers import SampledSoftmax, SampledSoftmaxLoss, SparseMoE
from tf_moe.models import PAPER

# Tables 7 and 8 of the paper: parameters without embedding and softmax, and ops/timestep, both in millions.
CELLS = {
    "LSTM-2048-512": (9.4, 9.4),
    "4xLSTM-512": (8.4, 8.4),
    "MoE-1-Wide": (8.4, 8.4),
    "MoE-1-Deep": (8.4, 8.4),
    "MoE-4": (8.4, 8.4),
    "MoE-32": (37.8, 8.4),
    "MoE-256": (272.9, 8.6),
    "MoE-256-h": (272.9, 8.4),
    "MoE-1024-h": (1079.0, 8.5),
    "MoE-4096-h": (4303.4, 8.9),
    "MoE-34M": (4313.9, 33.8),
    "MoE-143M": (4371.1, 142.7),
    "MoE-65536-h": (68791.0, 9.2),
    "MoE-131072-h": (137577.6, 9.7),
}


class CellsTest(TestCase):
    @parameterized.parameters(*CELLS.items())
    def test_are_those_of_the_tables(self, name, cells):
        """Within the last digit that is printed, or one more: the paper has 8.6 for 8.65 and 4371.1 for 4371.02."""
        network = PAPER[name]
        self.assertAllClose((network.parameters / 1e6, network.ops_per_timestep / 1e6), cells, rtol=0, atol=0.09)

    def test_best_published_lstm(self):
        """Table 1: 151 million multiply-adds a time step."""
        self.assertAllClose(PAPER["2xLSTM-8192-1024"].ops_per_timestep / 1e6, 151, atol=0.1)

    def test_every_network_is_under_its_name(self):
        self.assertEqual(list(PAPER), [network.name for network in PAPER.values()])
        self.assertContainsSubset({*CELLS, "MoE-16384-h", "2xLSTM-8192-1024"}, PAPER)


class BuildTest(TestCase):
    @parameterized.parameters(*PAPER)
    def test_counts_are_those_of_the_model(self, name):
        """At a small width, and with fewer experts where even that is too large."""
        network = PAPER[name].scaled(16)
        if network.parameters > 1e6:
            self.skipTest("large even so")
        counted = count(network.build(vocabulary_size=10))
        self.assertEqual(counted, (network.parameters, network.ops_per_timestep))

    @parameterized.parameters("MoE-4", "LSTM-2048-512", "MoE-1-Deep", "MoE-32")
    def test_counts_at_full_size(self, name):
        network = PAPER[name]
        self.assertEqual(count(network.build(vocabulary_size=10)), (network.parameters, network.ops_per_timestep))

    def test_shape(self):
        model = PAPER["MoE-256-h"].scaled(8).build(11, importance_weight=0.2, gate="noisy_top_k", seed=3)
        moe = model.get_layer("moe")
        self.assertIsInstance(moe, SparseMoE)
        self.assertEqual((moe.num_experts, moe.k, moe.importance_weight, moe.seed), ((16, 16), (2, 2), 0.2, 3))
        self.assertEqual(moe.output_activation.__name__, "sigmoid")
        self.assertEqual(model(self.rng.integers(0, 11, (2, 5))).shape, (2, 5, 11))
        self.assertEqual(PAPER["LSTM-2048-512"].scaled(64).build(11).get_layer("lstm_1").projection, 64)
        self.assertIsNone(PAPER["4xLSTM-512"].scaled(64).build(11).get_layer("lstm_4").projection)

    def test_a_softmax_of_ones_own(self):
        """The paper's is trained on a sample of the words."""
        network = PAPER["LSTM-2048-512"].scaled(8)
        model = network.build(50, SampledSoftmax(50, num_sampled=500, name="softmax"))
        x, y = self.rng.integers(1, 50, (2, 2, 6))
        self.assertEqual(model(x).shape, (2, 6, 50))
        model.compile("adam", SampledSoftmaxLoss(reduction="mean_with_sample_weight"))
        self.assertAllClose(model.train_on_batch(x, y), 3.9, atol=0.7)  # log 50
        with self.assertRaisesRegex(ValueError, "softmax must make 50 logits.*Received: 'softmax', which makes 49"):
            network.build(50, SampledSoftmax(49, name="softmax"))
        with self.assertRaisesRegex(TypeError, "softmax must be a Layer.*Received: softmax=50"):
            network.build(50, 50)

    def test_padding_is_masked_in_every_network(self):
        for name in ("MoE-4", "MoE-1-Deep", "4xLSTM-512", "LSTM-2048-512"):
            model = PAPER[name].scaled(8).build(11)
            x = self.rng.integers(1, 11, (2, 6))
            x[:, 2:4] = 0
            without = x[:, [0, 1, 4, 5]]
            self.assertAllClose(model(x).numpy()[:, [0, 1, 4, 5]], model(without), atol=1e-5, msg=name)

    @parameterized.parameters("MoE-4", "MoE-256", "MoE-256-h", "MoE-143M")
    def test_dense_twin(self, name):
        """Equal arithmetic at any width, to the last multiply-add, and no more weights than it uses."""
        for width in (16, 64, 1024):
            network = PAPER[name].scaled(width)
            twin = network.dense_twin()
            self.assertEqual(twin.ops_per_timestep, network.ops_per_timestep)
            self.assertEqual(twin.parameters, twin.ops_per_timestep)
            self.assertEqual(twin.name, f"{name}-dense")
        small = PAPER[name].scaled(16).dense_twin()
        self.assertEqual(count(small.build(10)), (small.parameters, small.ops_per_timestep))

    def test_without_a_mixture_nothing_can_be_changed_about_it(self):
        with self.assertRaisesRegex(ValueError, r"MoE-1-Wide has no mixture.*Received: arguments \['k', 'seed'\]"):
            PAPER["MoE-1-Wide"].build(10, seed=1, k=2)
        with self.assertRaisesRegex(ValueError, "4xLSTM-512 has no mixture"):
            PAPER["4xLSTM-512"].dense_twin()

    def test_scaled(self):
        network = PAPER["MoE-143M"].scaled(64)
        self.assertEqual((network.width, network.lstm_units, network.expert_hidden), (64, (256, 256), (512,)))
        self.assertEqual(network.num_experts, PAPER["MoE-143M"].num_experts)
        self.assertEqual(network.scaled(1024), PAPER["MoE-143M"])
        with self.assertRaisesRegex(ValueError, "width must be a positive integer.*Received: width=0"):
            network.scaled(0)
