import keras
from absl.testing import parameterized

from tests.bad_input.base import NAN, BadInput
from tf_moe.experts import FeedForward, LayerBank

SAME = keras.layers.Dense(3)


class ExpertsTest(BadInput):
    @parameterized.named_parameters(
        ("experts_zero", lambda: FeedForward(0, 3), ValueError, "num_experts=0"),
        ("experts_pair", lambda: FeedForward((2, 2), 3), ValueError, r"num_experts=\(2, 2\)"),
        ("hidden_text", lambda: FeedForward(4, "3"), ValueError, "hidden='3'"),
        ("hidden_none", lambda: FeedForward(4, None), ValueError, "hidden=None"),
        ("use_bias_word", lambda: FeedForward(4, 3, use_bias="no"), ValueError, "True or False.*use_bias='no'"),
        ("recompute_number", lambda: FeedForward(4, 3, recompute=2), ValueError, "recompute=2"),
        ("dropout_one", lambda: FeedForward(4, 3, dropout=1), ValueError, "under 1. Received: dropout=1"),
        ("dropout_nan", lambda: FeedForward(4, 3, dropout=NAN), ValueError, "dropout=nan"),
        ("dropout_text", lambda: FeedForward(4, 3, dropout="0.1"), ValueError, "dropout='0.1'"),
        ("seed_fraction", lambda: FeedForward(4, 3, seed=1.5), ValueError, "seed=1.5"),
        ("activation", lambda: FeedForward(4, 3, activation="no_such"), ValueError, "no_such"),
        ("layers_none", lambda: LayerBank(None), ValueError, "list of Keras layers.*layers=None"),
        ("layers_empty", lambda: LayerBank([]), ValueError, r"one for each expert.*layers=\[\]"),
        ("layers_one", lambda: LayerBank(SAME), ValueError, "layers=<Dense"),
        ("layers_word", lambda: LayerBank([SAME, "dense"]), ValueError, "Every expert must.*Received: 'dense'"),
        ("layers_same", lambda: LayerBank([SAME, SAME]), ValueError, "layer of its own.*Received:.*more than once"),
        ("layers_recompute", lambda: LayerBank([SAME], recompute="no"), ValueError, "recompute='no'"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)
