import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import NAN, BadInput, zeros
from tf_moe.layers import LSTM, Attention, AttentiveLSTM, SampledSoftmax, SampledSoftmaxLoss


def sampled_loss(targets, training=True):
    return SampledSoftmaxLoss()(tf.constant(targets), SampledSoftmax(5, 3)(zeros(2, 3), training=training))


class SampledSoftmaxTest(BadInput):
    @parameterized.named_parameters(
        ("vocabulary_zero", lambda: SampledSoftmax(0), ValueError, "vocabulary_size=0"),
        ("vocabulary_true", lambda: SampledSoftmax(True), ValueError, "vocabulary_size=True"),
        ("vocabulary_text", lambda: SampledSoftmax("5"), ValueError, "vocabulary_size='5'"),
        ("sampled_none", lambda: SampledSoftmax(5, None), ValueError, "num_sampled=None"),
        ("sampled_fraction", lambda: SampledSoftmax(5, 1.5), ValueError, "num_sampled=1.5"),
        ("sampling", lambda: SampledSoftmax(5, sampling="zipf"), ValueError, "log_uniform.*sampling='zipf'"),
        ("seed", lambda: SampledSoftmax(5, seed="a"), ValueError, "seed='a'"),
        ("initializer", lambda: SampledSoftmax(5, kernel_initializer="no_such"), ValueError, "no_such"),
        ("config", lambda: SampledSoftmax.from_config({}), TypeError, "'vocabulary_size'"),
        ("scalar", lambda: SampledSoftmax(5)(zeros()), ValueError, r"min_ndim=1.*\(\)"),
        ("integers", lambda: SampledSoftmax(5)(zeros(2, 3, dtype="int32")), ValueError, "dtype int32"),
        ("symbolic_booleans", lambda: SampledSoftmax(5)(keras.Input((3,), dtype="bool")), ValueError, "dtype bool"),
        ("unknown_width", lambda: SampledSoftmax(5)(keras.Input((3, None))), ValueError, r"shape=\(5, None\)"),
        ("training", lambda: SampledSoftmax(5)(zeros(2, 3), training="yes"), ValueError, "training='yes'"),
        ("targets_one_hot", lambda: sampled_loss(np.eye(5)[:2]), ValueError, r"targets \(2, 5\).*not one-hot"),
        ("targets_too_many", lambda: sampled_loss([1, 1, 1]), ValueError, r"targets \(3,\), predictions \(2, 3\)"),
        ("targets_evaluated", lambda: sampled_loss([1, 1, 1], False), ValueError, r"targets \(3,\), .*\(2, 5\)"),
        ("target_unknown", lambda: sampled_loss([7, 1]), tf.errors.InvalidArgumentError, r"7 is not in \[0, 5\)"),
        ("reduction", lambda: SampledSoftmaxLoss(reduction="best"), ValueError, "best"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        layer = SampledSoftmax(5)
        layer(zeros(2, 3))
        self.check(lambda: layer(zeros(2, 4)), ValueError, r"axis -1.* value 3.*\(2, 4\)")


class SetLaterTest(BadInput):
    """What would be saved, and the file would not load; or what would be another in the file than in the layer."""

    @parameterized.parameters(
        (lambda: SampledSoftmax(5), "num_sampled", 0),
        (lambda: SampledSoftmax(5), "sampling", "zipf"),
        (lambda: LSTM(4), "use_cudnn", "yes"),
        (lambda: LSTM(4, projection=2), "use_cudnn", True),
    )
    def test_wrong_values(self, make, name, value):
        layer = make()
        before = getattr(layer, name)
        self.check(lambda: setattr(layer, name, value), ValueError, f"{name}={value!r}")
        self.assertEqual(getattr(layer, name), before)

    @parameterized.parameters(
        (lambda: SampledSoftmax(5), "vocabulary_size", 6),
        (lambda: SampledSoftmax(5), "seed", 1),
        (lambda: Attention(4), "units", 5),
        (lambda: Attention(4), "score", "additive"),
        (lambda: AttentiveLSTM(4), "units", 5),
        (lambda: AttentiveLSTM(4), "score", "additive"),
    )
    def test_what_is_fixed(self, make, name, value):
        layer = make()
        pattern = f"{name} of a {type(layer).__name__} is fixed.*{name}={value!r}"
        self.check(lambda: setattr(layer, name, value), AttributeError, pattern)


class LSTMTest(BadInput):
    @parameterized.named_parameters(
        ("units_zero", lambda: LSTM(0), ValueError, "units=0"),
        ("units_fraction", lambda: LSTM(2.5), ValueError, "units=2.5"),
        ("units_text", lambda: LSTM("8"), ValueError, "units='8'"),
        ("units_true", lambda: LSTM(True), ValueError, "units=True"),
        ("units_none", lambda: LSTM(None), ValueError, "units=None"),
        ("projection_zero", lambda: LSTM(4, projection=0), ValueError, "or None. Received: projection=0"),
        ("projection_true", lambda: LSTM(4, projection=True), ValueError, "projection=True"),
        ("projection_text", lambda: LSTM(4, projection="2"), ValueError, "projection='2'"),
        ("cudnn_number", lambda: LSTM(4, use_cudnn=1), ValueError, "use_cudnn must be 'auto'.*use_cudnn=1"),
        ("cudnn_none", lambda: LSTM(4, use_cudnn=None), ValueError, "use_cudnn=None"),
        ("cudnn_projection", lambda: LSTM(4, projection=2, use_cudnn=True), ValueError, "projection=2, use_cudnn=True"),
        ("dropout_above", lambda: LSTM(4, dropout=1.5), ValueError, "from 0 to 1. Received: dropout=1.5"),
        ("dropout_nan", lambda: LSTM(4, dropout=NAN), ValueError, "dropout=nan"),
        ("dropout_text", lambda: LSTM(4, dropout="0.1"), ValueError, "dropout='0.1'"),
        ("recurrent_dropout", lambda: LSTM(4, recurrent_dropout=-0.5), ValueError, "recurrent_dropout=-0.5"),
        ("activation", lambda: LSTM(4, activation="no_such"), ValueError, "no_such"),
        ("unknown_argument", lambda: LSTM(4, peephole=True), ValueError, "'peephole': True"),
        ("config", lambda: LSTM.from_config({}), TypeError, "'units'"),
        ("rank_2", lambda: LSTM(4)(zeros(2, 3)), ValueError, r"ndim=3, found ndim=2.*\(2, 3\)"),
        ("unknown_width", lambda: LSTM(4)(keras.Input((3, None))), ValueError, r"shape=\(None, 16\)"),
        ("training", lambda: LSTM(4)(zeros(2, 3, 4), training="yes"), ValueError, "training='yes'"),
        ("mask_too_long", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones((2, 4), bool)), ValueError, r"mask \(2, 4\)"),
        ("mask_of_the_batch", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones(2, bool)), ValueError, r"mask \(2,\)"),
        ("mask_of_others", lambda: LSTM(4)(zeros(2, 3, 4), mask=np.ones((3, 3), bool)), ValueError, r"mask \(3, 3\)"),
        ("one_state", lambda: LSTM(4)(zeros(2, 3, 4), initial_state=[zeros(2, 4)]), ValueError, r"shapes \[\(2, 4\)\]"),
        (
            "width_of_state",
            lambda: LSTM(4, projection=2)(zeros(2, 3, 4), initial_state=[zeros(2, 4)] * 2),
            ValueError,
            r"\[h, c\], of shapes \(2, 2\) and \(2, 4\).*shapes \[\(2, 4\), \(2, 4\)\]",
        ),
        (
            "batch_of_state",
            lambda: LSTM(4)(zeros(2, 3, 4), initial_state=[zeros(3, 4)] * 2),
            ValueError,
            r"shapes \[\(3, 4\), \(3, 4\)\]",
        ),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)

    def test_another_width_than_built_for(self):
        layer = LSTM(4)
        layer(zeros(2, 3, 4))
        self.check(lambda: layer(zeros(2, 3, 5)), ValueError, r"axis -1.* value 4.*\(2, 3, 5\)")
