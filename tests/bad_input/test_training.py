import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import NAN, BadInput, zeros
from tf_moe import losses
from tf_moe.optimizers import FactoredAdam, WarmupInverseSqrt, optimizer_for


def smooth_load(k=1, noisy=(2, 3), **arguments):
    return losses.smooth_load(zeros(2, 3), zeros(*noisy), np.ones((2, 3)), k, **arguments)


def threshold_loss(chosen=(2, 3), **arguments):
    return losses.threshold_loss(zeros(2, 3), zeros(3), np.ones(chosen, bool), **arguments)


class LossesTest(BadInput):
    @parameterized.named_parameters(
        ("importance_vector", lambda: losses.importance(zeros(3)), ValueError, r"\(T, E\).*shape \(3,\)"),
        ("importance_rank_3", lambda: losses.importance(zeros(3, 2, 2)), ValueError, r"shape \(3, 2, 2\)"),
        ("load_k_zero", lambda: smooth_load(0), ValueError, r"1\.\.3.*k=0"),
        ("load_k_above", lambda: smooth_load(4), ValueError, r"1\.\.3.*k=4"),
        ("load_k_text", lambda: smooth_load("1"), ValueError, "k='1'"),
        ("load_k_fraction", lambda: smooth_load(1.5), ValueError, "k=1.5"),
        ("load_k_true", lambda: smooth_load(True), ValueError, "k=True"),
        ("load_shapes", lambda: smooth_load(noisy=(1, 3)), ValueError, r"noisy_logits \(1, 3\), clean_logits \(2, 3\)"),
        ("load_mask", lambda: smooth_load(mask=[True] * 3), ValueError, r"mask \(3,\)"),
        ("threshold_chosen", lambda: threshold_loss((1, 3)), ValueError, r"chosen \(1, 3\), scores \(2, 3\)"),
        ("threshold_mask", lambda: threshold_loss(mask=[True] * 3), ValueError, r"mask \(3,\)"),
        ("cv_of_text", lambda: losses.cv_squared("a"), tf.errors.UnimplementedError, "string to float"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)


def adam_for_both():
    adam = keras.optimizers.Adam()
    return optimizer_for(adam, adam)


class OptimizersTest(BadInput):
    @parameterized.named_parameters(
        ("beta_1_one", lambda: FactoredAdam(beta_1=1.0), ValueError, "under 1. Received: beta_1=1.0"),
        ("beta_1_text", lambda: FactoredAdam(beta_1="a"), ValueError, "beta_1='a'"),
        ("beta_2_negative", lambda: FactoredAdam(beta_2=-0.1), ValueError, "beta_2=-0.1"),
        ("beta_2_nan", lambda: FactoredAdam(beta_2=NAN), ValueError, "beta_2=nan"),
        ("beta_2_none", lambda: FactoredAdam(beta_2=None), ValueError, "beta_2=None"),
        ("epsilon_negative", lambda: FactoredAdam(epsilon=-1), ValueError, "epsilon=-1"),
        ("epsilon_text", lambda: FactoredAdam(epsilon="small"), ValueError, "epsilon='small'"),
        ("decay_negative", lambda: FactoredAdam(weight_decay=-1), ValueError, "weight_decay=-1"),
        ("rate_nan", lambda: FactoredAdam(NAN), ValueError, "learning_rate=nan"),
        ("rate_negative", lambda: FactoredAdam(-0.1), ValueError, "learning_rate=-0.1"),
        ("rate_integer", lambda: FactoredAdam(-1), ValueError, "learning_rate=-1"),
        ("rate_true", lambda: FactoredAdam(True), ValueError, "learning_rate=True"),
        ("rate_text", lambda: FactoredAdam("fast"), ValueError, "learning_rate=fast"),
        ("rate_none", lambda: FactoredAdam(None), ValueError, "learning_rate=None"),
        ("two_clips", lambda: FactoredAdam(clipnorm=1, clipvalue=2), ValueError, "clipnorm=1, clipvalue=2"),
        ("clip_negative", lambda: FactoredAdam(clipnorm=-1), ValueError, "clipnorm=-1"),
        ("clip_zero", lambda: FactoredAdam(clipvalue=0), ValueError, "clipvalue=0"),
        ("clip_text", lambda: FactoredAdam(global_clipnorm="1"), ValueError, "global_clipnorm='1'"),
        ("average", lambda: FactoredAdam(use_ema=True, ema_momentum=2), ValueError, "ema_momentum=2"),
        ("unknown_argument", lambda: FactoredAdam(momentum=0.9), ValueError, "'momentum': 0.9"),
        ("unknown_key", lambda: FactoredAdam.from_config({"gamma": 1}), ValueError, "'gamma': 1"),
        ("schedule_text", lambda: WarmupInverseSqrt("a"), ValueError, "learning_rate='a'"),
        ("schedule_negative", lambda: WarmupInverseSqrt(-1.0), ValueError, "learning_rate=-1.0"),
        ("schedule_nan", lambda: WarmupInverseSqrt(NAN), ValueError, "learning_rate=nan"),
        ("warmup_zero", lambda: WarmupInverseSqrt(1.0, 0), ValueError, "1 or more. Received: warmup_steps=0"),
        ("warmup_nan", lambda: WarmupInverseSqrt(1.0, NAN), ValueError, "warmup_steps=nan"),
        ("warmup_true", lambda: WarmupInverseSqrt(1.0, True), ValueError, "warmup_steps=True"),
        ("warmup_text", lambda: WarmupInverseSqrt(1.0, "a"), ValueError, "warmup_steps='a'"),
        ("constant_negative", lambda: WarmupInverseSqrt(1.0, 5, -1), ValueError, "constant_steps=-1"),
        ("by_part_words", lambda: optimizer_for("adam", "no_such"), ValueError, "no_such"),
        ("by_part_none", lambda: optimizer_for(None, keras.optimizers.Adam()), ValueError, "Received: None"),
        ("by_part_same", adam_for_both, ValueError, "two optimizers.*Received: <keras.*Adam.* for both"),
    )
    def test_calls(self, call, error, pattern):
        self.check(call, error, pattern)
