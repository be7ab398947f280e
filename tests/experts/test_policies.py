import keras

from tests.base import TestCase
from tf_moe.experts.policies import path_pattern, policy_of, policy_with_parts


class PoliciesTest(TestCase):
    def layer(self, dtype="float32"):
        layer = keras.Sequential([keras.layers.Dense(3, name="a", dtype=dtype), keras.layers.Dense(3, name="b")])
        layer.build((None, 3))
        return layer

    def test_of_a_layer(self):
        self.assertEqual(policy_of(self.layer("bfloat16").layers[0]).name, "bfloat16")
        special = keras.dtype_policies.get("mixed_bfloat16")
        policies = keras.dtype_policies.DTypePolicyMap("float64", {".*/a": special})
        layer = keras.layers.Dense(3, name="a", dtype=policies)
        self.assertEqual(policy_of(layer).name, "float64")  # it has no path yet
        keras.Sequential([keras.Input((3,)), layer])
        self.assertEqual(policy_of(layer).name, "mixed_bfloat16")

    def test_of_its_parts(self):
        layer = self.layer()
        self.assertEqual(policy_with_parts(layer, layer.layers).name, "float32")
        first, second = layer.layers
        first.quantize("int8")
        policies = policy_with_parts(layer, layer.layers)
        self.assertEqual([p.name for p in policies.values()], ["int8_from_float32"])
        for outside in ("", "model/", "model/block_1/"):
            for part, expected in ((first, "int8_from_float32"), (second, "float32")):
                self.assertEqual(policies[outside + f"{layer.name}/{part.name}"].name, expected)
        self.assertEqual(policies[f"other/{first.name}"].name, "float32")
        self.assertEqual(list(policies), [path_pattern(layer, first)])
