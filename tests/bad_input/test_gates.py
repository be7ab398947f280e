from absl.testing import parameterized

from tests.bad_input.base import BadInput, zeros
from tf_moe import gates
from tf_moe.gates import (
    BiasBalanced,
    DenseSoftmax,
    ExpertChoice,
    Gate,
    Hash,
    Hierarchical,
    NoisyTopK,
    Sinkhorn,
    StrictlyBalanced,
    Switch,
)
from tf_moe.layers import SparseMoE


class GatesTest(BadInput):
    @parameterized.named_parameters(
        ("noisy_k", lambda: NoisyTopK(4, 5), ValueError, "k=5, num_experts=4. Pass k<=4"),
        ("base_k", lambda: Gate(4, 9), ValueError, "k=9, num_experts=4"),
        ("base_text", lambda: Gate("4", 2), ValueError, "num_experts='4'"),
        ("base_levels", lambda: Gate((2, 4), 2), ValueError, "k must be a pair"),
        ("dtype", lambda: NoisyTopK(4, 2, dtype="float64"), ValueError, "float32 alone.*dtype='float64'"),
        ("noisy_pair", lambda: NoisyTopK((2, 2), 1), ValueError, r"num_experts=\(2, 2\)"),
        ("noisy_seed", lambda: NoisyTopK(4, 2, seed="a"), ValueError, "seed='a'"),
        ("noisy_initializer", lambda: NoisyTopK(4, 2, kernel_initializer="no_such"), ValueError, "no_such"),
        ("noisy_config", lambda: NoisyTopK.from_config({"num_experts": 4}), TypeError, "'k'"),
        ("balanced_fraction", lambda: StrictlyBalanced(4, 1.5), ValueError, "k=1.5"),
        ("balanced_seed", lambda: StrictlyBalanced(4, 2, seed=1.5), ValueError, "seed=1.5"),
        ("noisy_normalize", lambda: NoisyTopK(4, 2, normalize="none"), ValueError, "'chosen', 'all'.*normalize='none'"),
        ("noisy_z_loss", lambda: NoisyTopK(4, 2, z_loss_weight=-1), ValueError, "z_loss_weight=-1"),
        (
            "hierarchical_z_loss",
            lambda: Hierarchical((2, 2), (1, 1), z_loss_weight="1"),
            ValueError,
            "z_loss_weight='1'",
        ),
        ("switch_k", lambda: Switch(4, 2), ValueError, "k must be 1, or None.*k=2"),
        ("switch_pair", lambda: Switch((2, 2), 1), ValueError, r"num_experts=\(2, 2\)"),
        ("switch_jitter", lambda: Switch(4, jitter=1), ValueError, "jitter=1"),
        ("switch_loss", lambda: Switch(4, aux_loss_weight=float("nan")), ValueError, "aux_loss_weight=nan"),
        ("dense_k", lambda: DenseSoftmax(4, 2), ValueError, "k must be 4, or None.*k=2"),
        ("dense_experts", lambda: DenseSoftmax("4"), ValueError, "num_experts='4'"),
        ("choice_k", lambda: ExpertChoice(4, 1.25), ValueError, "k=1.25"),
        ("sinkhorn_iterations", lambda: Sinkhorn(4, 1, iterations=2.5), ValueError, "iterations=2.5"),
        ("bias_rate_negative", lambda: BiasBalanced(4, 2, bias_rate=-1), ValueError, "bias_rate=-1"),
        ("bias_rate_text", lambda: BiasBalanced(4, 2, bias_rate="0.1"), ValueError, "bias_rate='0.1'"),
        ("bias_k", lambda: BiasBalanced(4, 5), ValueError, "k=5, num_experts=4"),
        ("hash_k", lambda: Hash(4, 0), ValueError, "k=0"),
        ("hash_seed", lambda: Hash(4, 2, seed=2**64), ValueError, "seed=18446744073709551616"),
        ("hash_gates", lambda: Hash(4, 2, num_gates=2), ValueError, "Hash cannot be several.*num_gates=2"),
        ("hash_id", lambda: Hash(4, 2)(zeros(2, 3), gate_id=zeros(2)), ValueError, "gate_id of dtype float32"),
        ("num_gates_zero", lambda: NoisyTopK(4, 2, num_gates=0), ValueError, "num_gates=0"),
        ("num_gates_text", lambda: NoisyTopK(4, 2, num_gates="2"), ValueError, "num_gates='2'"),
        ("gate_id_missing", lambda: NoisyTopK(4, 2, num_gates=2)(zeros(2, 3)), ValueError, "gate_id=None"),
        ("gate_id_unwanted", lambda: NoisyTopK(4, 2)(zeros(2, 3), gate_id=1), ValueError, "gate_id=1"),
        ("hierarchical_number", lambda: Hierarchical(16, (2, 2)), ValueError, "must be a pair.*num_experts=16"),
        ("hierarchical_text", lambda: Hierarchical("ab", (1, 1)), ValueError, "num_experts='ab'"),
        ("hierarchical_true", lambda: Hierarchical((True, 2), (1, 1)), ValueError, r"num_experts\[0\]=True"),
        ("hierarchical_triple", lambda: Hierarchical((2, 2), (1, 1, 1)), ValueError, r"k=\(1, 1, 1\)"),
        ("get_unknown", lambda: gates.get("top_k", 4, 2), ValueError, "gate='top_k'"),
        ("get_list", lambda: gates.get(["noisy_top_k"], 4, 2), ValueError, r"gate=\['noisy_top_k'\]"),
        ("get_one_level", lambda: gates.get("hierarchical", 4, 2), ValueError, "must be a pair.*num_experts=4"),
        ("get_two_levels", lambda: gates.get("strictly_balanced", (2, 4), 1), ValueError, r"num_experts=\(2, 4\)"),
        ("get_option", lambda: gates.get("noisy_top_k", 4, 2, colour=1), ValueError, "'colour': 1"),
        ("get_for_others", lambda: gates.get(NoisyTopK(4, 2), 8, 2), ValueError, "num_experts=8, k=2"),
        (
            "get_option_of_a_gate",
            lambda: gates.get(NoisyTopK(4, 2), 4, 2, kernel_initializer="ones"),
            ValueError,
            "'kernel_initializer': 'ones'.*Give them to the gate itself",
        ),
        ("noisy_vector", lambda: NoisyTopK(4, 2)(zeros(3)), ValueError, r"ndim=2, found ndim=1.*\(3,\)"),
        ("noisy_rank_3", lambda: NoisyTopK(4, 2)(zeros(2, 3, 4)), ValueError, r"ndim=2, found ndim=3.*\(2, 3, 4\)"),
        ("balanced_rank_3", lambda: StrictlyBalanced(4, 2)(zeros(2, 3, 4)), ValueError, r"\(2, 3, 4\)"),
        ("hierarchical_rank_3", lambda: Hierarchical((4, 2), (2, 1))(zeros(2, 3, 4)), ValueError, r"\(2, 3, 4\)"),
        ("integers", lambda: NoisyTopK(4, 2)(zeros(2, 3, dtype="int32")), ValueError, "dtype int32"),
        ("mask", lambda: NoisyTopK(4, 2)(zeros(2, 3), mask=[True] * 3), ValueError, r"mask \(3,\), inputs \(2, 3\)"),
        ("balanced_mask", lambda: StrictlyBalanced(4, 2)(zeros(2, 3), mask=[True]), ValueError, r"mask \(1,\)"),
        ("training", lambda: NoisyTopK(4, 2)(zeros(2, 3), training="yes"), ValueError, "training='yes'"),
        ("unknown_width", lambda: NoisyTopK(4, 2).build((None, None)), ValueError, r"shape=\(None, 4\)"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    @parameterized.parameters(
        ("num_gates", 2), ("noisy", False), ("kernel_initializer", "ones"), ("noise_kernel_initializer", "ones")
    )
    def test_what_is_fixed(self, name, value):
        """Once a layer has it: a copy and a file would have the new one, but not the gate."""
        gate = SparseMoE(4, 3, gate=NoisyTopK(4, 2), k=2).gate
        self.check(lambda: setattr(gate, name, value), AttributeError, f"{name} of a NoisyTopK is fixed.*{value!r}")

    def test_inputs_of_a_gate_of_ones_own(self):
        class Mine(Gate):
            def build(self, input_shape):
                pass

            def call(self, inputs, mask=None, training=False):
                return inputs

        self.check(lambda: Mine(4, 2)(zeros(2, 3, 4)), ValueError, r"ndim=2, found ndim=3.*\(2, 3, 4\)")

    def test_another_width_than_built_for(self):
        for gate in (
            NoisyTopK(4, 2),
            StrictlyBalanced(4, 2),
            BiasBalanced(4, 2),
            Hash(4, 2),
            Hierarchical((4, 2), (2, 1)),
        ):
            gate(zeros(2, 3))
            self.check(lambda gate=gate: gate(zeros(2, 5)), ValueError, r"axis -1.* value 3.*\(2, 5\)")

    @parameterized.parameters(
        (lambda: NoisyTopK(4, 2), "normalize", "none"),
        (lambda: NoisyTopK(4, 2), "z_loss_weight", -1),
        (lambda: Hierarchical((2, 2), (1, 1)), "normalize", None),
        (lambda: Hierarchical((2, 2), (1, 1)), "z_loss_weight", "1"),
        (lambda: Switch(4), "aux_loss_weight", -0.5),
        (lambda: Switch(4), "jitter", 1),
        (lambda: Sinkhorn(4, 1), "iterations", 0),
        (lambda: BiasBalanced(4, 2), "bias_rate", -1),
    )
    def test_what_is_set_later(self, make, name, value):
        """A layer with the gate would be saved, and the file would not load."""
        gate = make()
        before = getattr(gate, name)
        self.check(lambda: setattr(gate, name, value), ValueError, f"{name}={value!r}")
        self.assertEqual(getattr(gate, name), before)
