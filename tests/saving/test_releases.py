import pathlib
import shutil

import numpy as np
from absl.testing import parameterized

from tests.base import TestCase
from tests.saving import loading

FILES = {
    f"{file.parent.name}_{file.name.removesuffix('.tar.xz')}": file
    for file in sorted(pathlib.Path(__file__).parent.glob("release_*/*.tar.xz"))
}


class ReleasesTest(TestCase):
    """Files that a release wrote stay as they are: it is the sources that must be able to load them."""

    @parameterized.named_parameters((name, name) for name in FILES)
    def test_loads_and_trains_on(self, name):
        folder = pathlib.Path(self.get_temp_dir(), name)
        shutil.unpack_archive(FILES[name], folder, filter="data")
        model = loading.load_all(folder)
        self.assertEqual(int(model.optimizer.iterations), 1)
        before = loading.state_of(model)
        loading.train(model, *loading.data(folder))
        self.assertEqual(int(model.optimizer.iterations), 2)
        after = loading.state_of(model)
        self.assertTrue(all(np.all(np.isfinite(value)) for value in after.values()))
        moved = [name for name in after if not np.array_equal(before[name], after[name])]
        self.assertGreater(len(moved), len(after) / 2)

    def test_none_is_lost(self):
        first = (
            "experts",
            "gates",
            "gates_by_id_and_bias",
            "language_model",
            "more_gates",
            "policies",
            "policies_hierarchical",
            "sampled_softmax",
        )
        self.assertContainsSubset({f"release_0_1_{name}" for name in first}, set(FILES))
