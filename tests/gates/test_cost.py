from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.gates import BiasBalanced, Hash, Hierarchical, NoisyTopK, StrictlyBalanced
from tf_moe.gates.cost import multiply_adds

D = 3


class MultiplyAddsTest(TestCase):
    @parameterized.named_parameters(
        ("_noise_has_a_matrix_too", NoisyTopK(5, 2), 2 * D * 5),
        ("_without_noise", NoisyTopK(5, 2, noisy=False), D * 5),
        ("_one_of_several", NoisyTopK(5, 2, num_gates=4), 2 * D * 5),
        ("_thresholds_are_no_matrix", StrictlyBalanced(5, 2), D * 5),
        ("_nor_are_biases", BiasBalanced(5, 2), D * 5),
        ("_none", Hash(5, 2), 0),
        ("_of_the_chosen_groups", Hierarchical((4, 6), (2, 1)), 2 * D * (4 + 2 * 6)),
        ("_of_the_chosen_groups_of_one_of_several", Hierarchical((4, 6), (2, 1), num_gates=3), 2 * D * (4 + 2 * 6)),
    )
    def test(self, gate, expected):
        gate.build((None, D))
        self.assertEqual(multiply_adds(gate), expected)
