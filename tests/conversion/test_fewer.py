import keras
import numpy as np

from tests.base import TestCase
from tests.references import softmax, top_k_set
from tf_moe import gates
from tf_moe.analysis import Usage, measure_usage
from tf_moe.conversion import merge_experts, prune_experts, quantize_experts, shrink_experts, upcycle
from tf_moe.layers import SparseMoE

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def mixture(x, gate_kernel, experts, k):
    """The gated sum over the experts that are given, in float64; each is (W_1, W_2)."""
    output = np.zeros(x.shape)
    for t, token in enumerate(x.astype("float64")):
        logits = token @ gate_kernel.astype("float64")
        chosen = top_k_set(logits, k)
        for weight, e in zip(softmax(logits[chosen]), chosen, strict=True):
            first, second = (w.astype("float64") for w in experts[e])
            output[t] += weight * np.maximum(token @ first, 0) @ second
    return output


class FewerTest(TestCase):
    def layer(self, num_experts=5, k=2, **kwargs):
        layer = SparseMoE(num_experts, 7, k=k, **kwargs)
        layer.build((None, 4))
        for weight in layer.weights:
            weight.assign(self.normal(*weight.shape))
        return layer

    def experts(self, layer):
        return list(zip(layer.experts.hidden_kernel.numpy(), layer.experts.output_kernel.numpy(), strict=True))

    def test_prune(self):
        layer, x = self.layer(name="moe", shared_expert_hidden=3, importance_weight=0.7), self.normal(20, 4)
        loads = np.array([3.0, 0, 9, 9, 1])
        before = [w.numpy() for w in layer.weights]
        for keep, usage, kept in (
            ([4, 0, 2], None, [0, 2, 4]),
            (3, loads, [0, 2, 3]),
            (2, Usage(loads, 1 - loads), [2, 3]),
            (np.arange(5), None, [0, 1, 2, 3, 4]),
        ):
            new = prune_experts(layer, keep, usage)
            self.assertEqual((new.name, new.num_experts, new.k, new.importance_weight), ("moe", len(kept), 2, 0.7))
            experts = [self.experts(layer)[e] for e in kept]
            expected = mixture(x, layer.gate.kernel.numpy()[:, kept], experts, 2) + layer.shared_expert(x)
            self.assertAllClose(new(x), expected, **CLOSE)
            self.assertAllEqual(new.gate.noise_kernel, layer.gate.noise_kernel.numpy()[:, kept])
        self.assertAllEqual(new(x[None], mask=np.zeros((1, 20), bool)), np.zeros((1, 20, 4)))
        for weight, value in zip(layer.weights, before, strict=True):
            self.assertAllEqual(weight, value)

    def test_prune_other_experts(self):
        x = self.normal(20, 4)
        layers = self.layer(expert=lambda: keras.layers.Dense(4), gate=gates.NoisyTopK(5, 2, noisy=False))
        new = prune_experts(layers, [1, 3, 4])
        self.assertFalse(new.gate.noisy)
        for layer, e in zip(new.experts.layers, (1, 3, 4), strict=True):
            self.assertAllEqual(layer.kernel, layers.experts.layers[e].kernel)
            self.assertIsNot(layer, layers.experts.layers[e])
        plain = self.layer(use_bias=True)
        quantized = quantize_experts(plain, "int8")
        small = prune_experts(quantized, [0, 3])
        self.assertEqual((small.experts.hidden_kernel.dtype, small.experts.hidden_kernel.shape[0]), ("int8", 2))
        self.assertAllClose(small(x), quantize_experts(prune_experts(plain, [0, 3]), "int8")(x), **CLOSE)

    def test_prune_several_gates(self):
        layer, x, kept = self.layer(gate=gates.NoisyTopK(5, 2, num_gates=3)), self.normal(20, 4), [1, 2, 4]
        experts = [self.experts(layer)[e] for e in kept]
        outputs = prune_experts(layer, kept)(x, gate_id=np.arange(20) % 3)
        for n in range(3):
            expected = mixture(x[n::3], layer.gate.kernel.numpy()[n][:, kept], experts, 2)
            self.assertAllClose(outputs[n::3], expected, **CLOSE)

    def test_merge_by_hand(self):
        layer, x = self.layer(), self.normal(20, 4)
        loads, groups = np.array([3.0, 0, 1, 6, 0]), [[0, 3], [1, 4], [2]]
        shares = [[1 / 3, 2 / 3], [1 / 2, 1 / 2], [1]]  # a group without load evenly
        new = merge_experts(layer, groups, loads)
        self.assertEqual(new.num_experts, 3)

        def mean(stack):
            return [
                sum(share * stack[e].astype("float64") for e, share in zip(group, part, strict=True))
                for group, part in zip(groups, shares, strict=True)
            ]

        kernel = np.stack(mean(layer.gate.kernel.numpy().T), axis=1)
        experts = list(zip(*(mean(w.numpy()) for w in layer.experts.weights), strict=True))
        self.assertAllClose(new(x), mixture(x, kernel, experts, 2), **CLOSE)
        self.assertAllEqual(new.experts.hidden_kernel[2], layer.experts.hidden_kernel[2])
        even = merge_experts(layer, groups)
        self.assertAllClose(even.gate.noise_kernel[:, 0], layer.gate.noise_kernel.numpy()[:, [0, 3]].mean(axis=1))

    def test_merge_finds_what_is_alike(self):
        """A mixture of copies, each with little noise, is what it was, however few are left of it."""
        hidden, output = keras.layers.Dense(10, "tanh"), keras.layers.Dense(4)
        hidden.build((None, 4))
        output.build((None, 10))
        x = self.normal(20, 4)
        copies = upcycle(hidden, output, 6, 2, noise=1e-3)
        for usage in (None, np.zeros(6), np.arange(6)):
            self.assertAllClose(merge_experts(copies, 3, usage)(x), copies(x), atol=0.01)
        layer = self.layer(6)
        for weight in layer.experts.weights:  # 0 and 4, 1 and 3 are the same
            weight.assign(weight.numpy()[[0, 1, 2, 1, 0, 5]])
        merged = merge_experts(layer, 4)
        self.assertAllEqual(merged.experts.hidden_kernel, layer.experts.hidden_kernel.numpy()[[0, 1, 2, 5]])

    def test_a_model_before_and_after(self):
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(12, 4),
                keras.Sequential([SparseMoE(6, 5, k=2, name="first")], name="block"),
                SparseMoE(4, 5, k=2, name="second"),
                keras.layers.Dense(12),
            ]
        )
        for weight in model.weights:
            weight.assign(self.normal(*weight.shape))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, run_eagerly=True)
        ids = self.rng.integers(0, 12, (4, 5))
        usage = measure_usage(model, [ids])

        def shrink(layer):
            return prune_experts(layer, 3, usage[layer.name]) if layer.name == "first" else layer

        result = shrink_experts(model, shrink, ids, y=ids, batch_size=2)
        self.assertAllClose(result.before["loss"], model.evaluate(ids, ids, verbose=0, return_dict=True)["loss"])
        smaller = result.model.evaluate(ids, ids, verbose=0, return_dict=True)["loss"]
        self.assertAllClose(result.after["loss"], smaller)
        self.assertNotAllClose(result.after["loss"], result.before["loss"])
        first, second = result.model.layers[1].layers[0], result.model.get_layer("second")
        self.assertEqual((first.num_experts, second.num_experts), (3, 4))
        self.assertIsNot(second, model.get_layer("second"))
        kept = sorted(np.argsort(-usage["first"].load, kind="stable")[:3])
        self.assertAllEqual(first.experts.hidden_kernel, model.layers[1].layers[0].experts.hidden_kernel.numpy()[kept])

    def test_errors(self):
        layer = self.layer(name="moe")
        balanced, levels = self.layer(gate="strictly_balanced"), self.layer((2, 2), (1, 2))
        layers = self.layer(expert=lambda: keras.layers.Dense(4))
        model = keras.Sequential([keras.Input((4,)), SparseMoE(4, 3, k=2)])
        for call, error, pattern in (
            (lambda: prune_experts(balanced, [0, 1]), ValueError, "gate is a NoisyTopK.*StrictlyBalanced"),
            (lambda: merge_experts(levels, 2), ValueError, "on one level.*Hierarchical"),
            (lambda: prune_experts(SparseMoE(4, 3, k=2, name="new"), [0, 1]), ValueError, "be built.*'new'"),
            (lambda: prune_experts(model, [0, 1]), TypeError, "layer must be a SparseMoE"),
            (lambda: prune_experts(layer, 3), ValueError, "usage is needed. Received: usage=None"),
            (lambda: prune_experts(layer, 3, {"moe": [1]}), ValueError, r"a dict of \['moe'\]. Pass usage\["),
            (lambda: prune_experts(layer, [0, 77]), ValueError, r"Received: \[0, 77\]"),
            (lambda: prune_experts(layer, [0, 1], np.ones(5)), ValueError, "Received: both"),
            (lambda: prune_experts(layer, 1, np.ones(5)), ValueError, "at least k=2.*Received: keep=1"),
            (lambda: prune_experts(layer, [3]), ValueError, "number of experts in keep must be at least k=2.*=1"),
            (
                lambda: prune_experts(layer, 6, np.ones(5)),
                ValueError,
                "at most 5, the layer's.*keep=6",
            ),
            (lambda: prune_experts(layer, [1, 5]), ValueError, r"from 0 to 4. Received: \[1, 5\]"),
            (lambda: prune_experts(layer, [1, 1]), ValueError, r"at most once.*Received: \[1, 1\]"),
            (lambda: prune_experts(layer, [1, 0.5]), ValueError, "0.5"),
            (lambda: prune_experts(layer, 2.5, np.ones(5)), ValueError, "keep=2.5"),
            (lambda: prune_experts(layer, 3, np.ones(4)), ValueError, "5 loads"),
            (lambda: prune_experts(layer, 3, -np.ones(5)), ValueError, "0 or more"),
            (lambda: merge_experts(layer, [[0, 1], [2, 3]]), ValueError, "every one of the 5 experts"),
            (lambda: merge_experts(layer, [[0, 1, 2, 3, 4]]), ValueError, "number of groups must be at least k=2.*=1"),
            (lambda: merge_experts(layer, [[0, 1, 2], [2, 3, 4]]), ValueError, "at most once"),
            (lambda: merge_experts(layer, [[0, 1, 2, 3, 4], []]), ValueError, r"Received: \[\[0, 1, 2, 3, 4\], \[\]\]"),
            (lambda: merge_experts(layers, 3), ValueError, "Only built-in experts.*expert="),
            (lambda: merge_experts(quantize_experts(layer, "int8"), 3), ValueError, "not quantized.*'moe'"),
            (lambda: shrink_experts(model, lambda layer: layer, None), ValueError, "must be compiled"),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(error, pattern):
                call()
