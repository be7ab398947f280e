import warnings

import keras
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.layers import LSTM, Attention, SampledSoftmax, SparseMoE
from tf_moe.models import PAPER, Decoder, dense_twin, language_model, residual_language_model


class SelfAttention(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = Attention(4)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x)


class OfKeras(keras.layers.Layer):
    """One of Keras's layers of several inputs, each of which is the same."""

    def __init__(self, attention, in_a_list=True):
        super().__init__()
        self.attention, self.in_a_list = attention, in_a_list

    def build(self, shape):
        self.attention.build([shape, shape] if self.in_a_list else shape, *[shape] * (not self.in_a_list))

    def call(self, x):
        return self.attention([x, x]) if self.in_a_list else self.attention(x, x)


class DecoderTest(TestCase):
    def model(self, middle):
        model = language_model(20, middle, width=8)
        for weight in model.trainable_weights:  # so that logits differ by more than rounding
            weight.assign(self.normal(*weight.shape) * 0.5)
        return model

    @parameterized.named_parameters(
        ("flat", lambda: [SparseMoE(4, 16, k=2)]),
        ("hierarchical", lambda: [SparseMoE((2, 4), 16, k=(1, 2))]),
        ("capacity", lambda: [SparseMoE(4, 16, k=2, capacity_factor=4.0)]),
        ("dense", lambda: [dense_twin(SparseMoE(4, 16, k=2), 8)]),
        ("two", lambda: [SparseMoE(4, 16, k=1), SparseMoE(2, 8, k=2)]),
    )
    def test_equals_the_whole_sequence(self, middle):
        model = self.model(middle())
        ids = self.rng.integers(1, 20, (3, 7)).astype("int32")
        expected = model(ids)
        decoder = Decoder(model)
        state = decoder.initial_state(3)
        for t in range(7):
            logits, state = decoder.step(tf.constant(ids[:, t]), state)
            self.assertAllClose(logits, expected[:, t], rtol=1e-4, atol=1e-5)

    @parameterized.named_parameters(
        ("mixture_in_float32", "mixed_bfloat16", lambda: [SparseMoE(4, 16, k=2, dtype="float32")]),
        ("mixture_in_bfloat16", "float32", lambda: [SparseMoE(4, 16, k=2, dtype="mixed_bfloat16")]),
    )
    def test_layers_of_different_dtypes(self, policy, middle):
        keras.config.set_dtype_policy(policy)
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        model = language_model(20, middle(), width=8)
        ids = self.rng.integers(1, 20, (3, 4)).astype("int32")
        decoder = Decoder(model)
        state = decoder.initial_state(3)
        for t in range(4):
            logits, state = decoder.step(tf.constant(ids[:, t]), state)
            self.assertAllClose(logits, model(ids)[:, t], rtol=0.02, atol=0.02)

    def test_in_a_graph_with_any_batch(self):
        model = self.model([SparseMoE(4, 16, k=2)])
        decoder = Decoder(model)

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
        def last(ids):
            states = decoder.initial_state(tf.shape(ids)[0])
            logits = tf.zeros([tf.shape(ids)[0], 20])
            for t in tf.range(tf.shape(ids)[1]):
                logits, states = decoder.step(ids[:, t], states)
            return logits

        for shape in ((2, 5), (4, 3)):
            ids = self.rng.integers(1, 20, shape).astype("int32")
            self.assertAllClose(last(ids), model(ids)[:, -1], rtol=1e-4, atol=1e-5)

    def test_padding_leaves_the_state(self):
        model = self.model([SparseMoE(4, 16, k=2)])
        decoder = Decoder(model)
        ids = tf.constant([[3, 4, 5], [6, 0, 5]])
        state = decoder.initial_state(2)
        for t in range(3):
            logits, state = decoder.step(ids[:, t], state)
        self.assertAllClose(logits, model(ids)[:, -1], rtol=1e-4, atol=1e-5)
        self.assertAllClose(logits[1:], model(tf.constant([[6, 5]]))[:, -1], rtol=1e-4, atol=1e-5)

    def test_padding_takes_no_place_in_an_expert(self):
        """With room for one token in each expert, in a batch of four of which three have ended."""
        moe = SparseMoE(2, 16, k=1, capacity_factor=0.5)
        decoder = Decoder(self.model([moe]))
        alone, _ = decoder.step(tf.constant([7]), decoder.initial_state(1))
        among_others, _ = decoder.step(tf.constant([0, 0, 0, 7]), decoder.initial_state(4))
        self.assertAllClose(among_others[3:], alone, rtol=1e-4, atol=1e-5)

    def test_a_state_can_be_shared(self):
        """Two ways to go on from one state, and one of them again."""
        decoder = Decoder(self.model([SparseMoE(4, 16, k=2)]))
        _, state = decoder.step(tf.constant([3]), decoder.initial_state(1))
        first, _ = decoder.step(tf.constant([4]), state)
        other, _ = decoder.step(tf.constant([5]), state)
        again, _ = decoder.step(tf.constant([4]), state)
        self.assertAllEqual(first, again)
        self.assertNotAllClose(first, other)

    def test_mixed_precision(self):
        self.addCleanup(keras.config.set_dtype_policy, keras.config.dtype_policy())
        keras.config.set_dtype_policy("mixed_bfloat16")
        model = self.model([SparseMoE(4, 16, k=2)])
        decoder = Decoder(model)
        logits, state = decoder.step(tf.constant([3, 4]), decoder.initial_state(2))
        self.assertDTypeEqual(state[0][0], tf.bfloat16.as_numpy_dtype)
        self.assertAllClose(logits, model(tf.constant([[3], [4]]))[:, 0], rtol=0.05, atol=0.05)

    def test_networks_of_other_depths(self):
        """One LSTM, many, with a projection, and a softmax that is trained on a sample: their chain is what counts."""
        networks = [PAPER["4xLSTM-512"].scaled(8), PAPER["LSTM-2048-512"].scaled(8)]
        models = [network.build(20) for network in networks]
        models.append(residual_language_model(20, [LSTM(8, return_sequences=True)], 8, softmax=SampledSoftmax(20)))
        ids = self.rng.integers(1, 20, (3, 4)).astype("int32")
        for model in models:
            decoder = Decoder(model)
            state = decoder.initial_state(3)
            for t in range(4):
                logits, state = decoder.step(tf.constant(ids[:, t]), state)
            self.assertAllClose(logits, model(ids)[:, -1], rtol=1e-4, atol=1e-5)

    def test_another_model(self):
        model = keras.Sequential([keras.Input((None,)), keras.layers.Embedding(4, 4), keras.layers.Dense(4)])
        with self.assertRaisesRegex(ValueError, "language_model.*Received: a model of .*embedding"):
            Decoder(model)
        moe = SparseMoE(4, 16, k=2, name="moe")
        with self.assertRaisesRegex(ValueError, "each used once.*'moe'"):
            Decoder(language_model(5, [moe, moe], width=4))

    @parameterized.parameters(
        lambda: keras.layers.LayerNormalization(),
        lambda: keras.layers.UnitNormalization(),
        lambda: keras.layers.BatchNormalization(),
    )
    def test_normalizations_of_a_step(self, make):
        model = self.model([make()])
        ids = self.rng.integers(1, 9, (3, 4)).astype("int32")
        decoder = Decoder(model)
        state = decoder.initial_state(3)
        for t in range(4):
            logits, state = decoder.step(tf.constant(ids[:, t]), state)
        self.assertAllClose(logits, model(ids)[:, -1], rtol=1e-4, atol=1e-5)

    @parameterized.parameters(
        lambda: keras.layers.GRU(4, return_sequences=True),
        lambda: keras.layers.LSTM(4, return_sequences=True, go_backwards=True),
        lambda: keras.layers.Bidirectional(keras.layers.LSTM(2, return_sequences=True)),
        lambda: keras.layers.Conv1D(4, 3, padding="causal"),
        lambda: keras.Sequential([keras.layers.Dense(4), keras.layers.LSTM(4, return_sequences=True)]),
        lambda: keras.layers.Conv1DTranspose(4, 3, padding="same"),
        lambda: keras.layers.SeparableConv1D(4, 3, padding="same"),
        lambda: keras.layers.DepthwiseConv1D(3, padding="same"),
        lambda: keras.layers.AveragePooling1D(3, strides=1, padding="same"),
        lambda: keras.layers.MaxPooling1D(3, strides=1, padding="same"),
        lambda: keras.layers.GroupNormalization(2),
        lambda: keras.layers.UnitNormalization(axis=1),
        lambda: keras.layers.UnitNormalization(axis=0),
        lambda: SparseMoE(4, 16, k=2, gate="expert_choice"),
        lambda: SelfAttention(),
        lambda: OfKeras(keras.layers.Attention()),
        lambda: OfKeras(keras.layers.AdditiveAttention()),
        lambda: OfKeras(keras.layers.MultiHeadAttention(2, 2), in_a_list=False),
        lambda: OfKeras(keras.layers.GroupQueryAttention(2, 2, 1), in_a_list=False),
    )
    def test_layers_that_need_other_steps(self, make):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not support masking")  # Keras's, of some of these
            model = language_model(5, [make()], width=4)
        with self.assertRaisesRegex(ValueError, "step by step.*Received: '"):
            Decoder(model)

    def test_an_lstm_with_a_state_of_its_own(self):
        """Which a model for any batch cannot have from the start."""
        lstm = LSTM(4, return_sequences=True, name="mine")
        model = residual_language_model(5, [lstm], width=4)
        Decoder(model)
        lstm.stateful = True
        with self.assertRaisesRegex(ValueError, "step by step.*Received: 'mine'"):
            Decoder(model)
