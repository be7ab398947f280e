import pathlib

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tests.processes import run_python
from tests.saving import loading
from tests.saving.models import MODELS
from tests.saving.store import store


class FreshProcessTest(TestCase):
    # Two parts, for two workers.
    @parameterized.parameters([list(MODELS)[::2]], [list(MODELS)[1::2]])
    def test_every_kind_in_every_form(self, names):
        """What a process that knows only tf_moe loads has the same state, answers the same, and trains on the same."""
        folder = pathlib.Path(self.get_temp_dir(), names[0])
        # One form of SavedModel for each kind, the other one in other runs: most of the time goes to tracing them.
        first = self.rng.integers(2)
        for n, name in enumerate(names, first):
            model = store(folder / name, name, seed=int(self.rng.integers(2**31)))
            if name == "policies_hierarchical":
                pass  # which is traced slowly: its gate and its policies are in others
            elif n % 2:
                tf.saved_model.save(model, folder / name / "saved_model")
            else:
                model.export(folder / name / "exported", verbose=False)
            np.savez(folder / name / "state.npz", **loading.state_of(model))
            loading.repeat_noise(model)
            loading.train(model, *loading.data(folder / name))
            np.savez(folder / name / "next.npz", **loading.state_of(model))
        printed = run_python(loading.__file__, folder).stdout
        self.assertEqual(printed.splitlines(), [f"loaded {name}" for name in sorted(names)])
