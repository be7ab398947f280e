"""A callback that tells of experts nobody uses."""

import warnings
from collections.abc import Iterable

import keras

from tf_moe import checks
from tf_moe.analysis.observer import Observer, check_batches, tally
from tf_moe.analysis.usage import UsageTally


class DeadExperts(keras.callbacks.Callback):
    """Looks after each epoch for experts that no position is sent to, and warns of them.

    Such experts get no gradient: they are capacity lost, and the balance losses are there to bring them back. A warning
    in the first epochs is no harm; one that stays says that the losses' weights are too small, or the batches.

    Args:
        batches: What to look at, such as the validation data, a list or a dataset of batches; of arrays pass `[x]`.
            Enough positions for every expert to be chosen, and few enough to be routed once an epoch.
        share: An expert counts as dead with no more than this share of its even load. Default 0: with none at all.

    Attributes:
        history: For each layer's name, the indices of dead experts after each epoch, a list of lists. With another
            model it begins anew.

    Raises:
        ValueError: If share is not from 0 to under 1, or `batches` is one batch or can be gone through only once; after
            the first epoch, if the model has no SparseMoE layer.

    Example:

    ```python
    model.fit(dataset, callbacks=[tf_moe.analysis.DeadExperts(dataset.take(10))])
    ```

    Reference: section 4 of Shazeer et al. (2017): a gate tends to a state where it always chooses the same few experts.
    """

    def __init__(self, batches: Iterable, share: float = 0.0):
        super().__init__()
        check_batches(batches, again=True)
        self.batches = batches
        self.share = checks.zero_to_below_one("share", share)
        self.history: dict[str, list[list[int]]] = {}

    def set_model(self, model):
        if model is not self.model:
            self.history = {}
        super().set_model(model)
        self._observer = None

    def on_epoch_end(self, epoch, logs=None):
        self._observer = self._observer or Observer(self.model)  # traced in the first epoch only
        for name, one in tally(self._observer, self.batches, UsageTally).items():
            usage = one.result()
            dead = usage.dead(self.share).tolist()
            self.history.setdefault(name, []).append(dead)
            if dead:
                shown = ", ".join(map(str, dead[:10])) + (", ..." if len(dead) > 10 else "")
                warnings.warn(
                    f"Epoch {epoch + 1}: {len(dead)} of {len(usage.load)} experts of {name!r} get no tokens, or nearly "
                    f"none ({shown}). If that lasts, raise importance_weight and load_weight, or the batch size.",
                    stacklevel=2,
                )
