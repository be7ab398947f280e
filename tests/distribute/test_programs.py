from pathlib import Path
from unittest import mock

import keras
import tensorflow as tf

from tests.base import TestCase
from tests.distribute.helpers import VOCABULARY, compiled, language_model
from tests.mesh.helpers import Program, strategy_on
from tests.processes import run_python
from tf_moe.distribute import extended, programs
from tf_moe.distribute.batches import place_batch
from tf_moe.distribute.values import OnMesh
from tf_moe.layers import LSTM


class ProgramsTest(TestCase):
    def test_programs_with_loops_beside_one_another(self):
        """The same loops, forward and backward, at three batch sizes and in training and at evaluation."""
        strategy = strategy_on(2)
        one = keras.Sequential([keras.Input((3, 4)), LSTM(4)])
        with strategy.scope():
            many = keras.models.clone_model(one)
        many.set_weights(one.get_weights())

        def step_of(model):
            def step(x):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(model(x, training=True) ** 2)
                return model(x), tape.gradient(loss, [v.value for v in model.trainable_variables])

            return step

        program = Program(strategy, step_of(many))
        for size in (4, 6, 8):
            x = self.normal(size, 3, 4)
            for ours, expected in zip(
                tf.nest.flatten(program(x)), tf.nest.flatten(step_of(one)(tf.constant(x))), strict=True
            ):
                self.assertAllClose(ours, expected, rtol=1e-4, atol=1e-5)
        self.assertEqual(program.traces, 3)

    def test_function_in_an_eager_run(self):
        """Such a program is not traced by the strategy, which has to care for it all the same."""
        strategy = strategy_on(2)
        with strategy.scope():
            model = keras.Sequential([keras.Input((3, 4)), LSTM(4)])

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x, training=True) ** 2)
            return model(x), tape.gradient(loss, [v.value for v in model.trainable_variables])

        for size in range(4, 10, 2):
            strategy.run(step, (OnMesh(place_batch(self.normal(size, 3, 4), strategy.shards)),))

    def test_eager_steps_take_no_memory(self):
        with strategy_on(2).scope():
            model = compiled(language_model(recurrent=False), run_eagerly=True)
        x = self.rng.integers(1, VOCABULARY, (6, 2)).astype("int32")
        with (
            mock.patch.object(extended, "new_program", wraps=programs.new_program) as steps,
            mock.patch.object(programs, "_take_freed_memory") as taken,
        ):
            model.fit(x, x, batch_size=2, verbose=0)
        self.assertEqual(steps.call_count, 3)
        self.assertLessEqual(taken.call_count, 1)  # where programs before had loops

    def test_the_workarounds_are_needed(self):
        script = Path(__file__).parent / "programs_without_workaround.py"
        run = run_python(script, DTENSOR_ENABLE_COMBINE_ALL_REDUCES_OPTIMIZATION="0")
        self.assertIn("failed: ", run.stdout)
        self.assertNotIn(
            "failed: 0",
            run.stdout,
            "DTensor compiles many programs with loops in one process now: _take_freed_memory in "
            "tf_moe/distribute/programs.py can go, and with it 20 MB for each program.",
        )
        self.assertIn("mesh left behind: True", run.stdout, "_default_mesh in tf_moe/distribute/extended.py can go.")
