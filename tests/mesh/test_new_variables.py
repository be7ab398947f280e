from tests.base import TestCase
from tf_moe.mesh import new_variables as module


class NewVariablesTest(TestCase):
    def test_scopes_end(self):
        scopes = {
            module.experts_of_new_variables: (lambda: module.split_over_experts(6), 6),
            module.initialized_experts: (lambda: module.initializing(2, 4), (2, 4)),
        }
        for ask, (scope, expected) in scopes.items():
            self.assertIsNone(ask())
            with self.assertRaises(KeyError), scope():
                self.assertEqual(ask(), expected)
                raise KeyError
            self.assertIsNone(ask())
