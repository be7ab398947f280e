"""Parts of a layer that are frozen on their own: Keras's configs say only whether the whole is."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras


def frozen_config(
    layer: keras.layers.Layer, parts: Mapping[str, keras.layers.Layer], frozen: Iterable[str] = ()
) -> dict[str, list[str]]:
    """The entry of a config that names the parts which do not train while the layer does; none where all do.

    Args:
        layer: The whole.
        parts: What there is of it.
        frozen: What is to be frozen as soon as the layer is built.
    """
    if not layer.trainable:
        return {}
    names = [] if layer.built else list(frozen)
    names += [name for name, part in parts.items() if not part.trainable and name not in names]
    return {"frozen": names} if names else {}


def without_frozen(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config without its entry of `frozen_config`, and the names in that."""
    config = dict(config)
    return config, tuple(config.pop("frozen", ()))


def freeze(layer: keras.layers.Layer, parts: Mapping[str, keras.layers.Layer], frozen: Iterable[str] = ()) -> None:
    """Freeze the parts of these names; all of them in a layer that does not train.

    To be done when the parts are built: Keras tells weights when `trainable` changes, not when they are made.
    """
    frozen = set(frozen)
    for name, part in parts.items():
        if not layer.trainable or name in frozen:
            part.trainable = False
