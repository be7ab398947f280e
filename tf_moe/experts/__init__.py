"""Banks of experts: from rows sorted by expert to their outputs."""

from tf_moe.experts.feed_forward import FeedForward
from tf_moe.experts.layer_bank import LayerBank

__all__ = ["FeedForward", "LayerBank"]
