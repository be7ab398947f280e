"""Where the examples of texts run: in an empty directory, after the lines in `tf_moe.__doc__`."""

import contextlib
import os
import warnings
from unittest import mock

import tf_moe
from tests.base import TestCase
from tests.docs.examples import blocks, run_block
from tests.text.files import new_folder


class ExamplesTestCase(TestCase):
    """Has the names that every example begins with, in `names`."""

    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.dict(os.environ))
        # Two of the eight devices that tests have: with each more, a mesh takes longer to compile.
        devices = mock.patch("tf_moe.distribute.strategy._local_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
        self.enter_context(devices)
        self.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "`shuffle=True` was passed")  # which Keras 3.15 says of any `fit(dataset)`
        self.enter_context(contextlib.chdir(new_folder(self)))
        (introduction,) = blocks(tf_moe.__doc__)
        self.names = {"__name__": "__main__"}
        run_block(introduction, self.names, "tf_moe.__doc__")

    def tearDown(self):
        super(TestCase, self).tearDown()  # clearing Keras's session, as the base does, takes longer than most examples
