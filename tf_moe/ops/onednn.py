"""Whether TensorFlow computes with oneDNN. The private part of it that tells is imported here alone.

`tests/ops/test_onednn.py` fails if an upgrade takes it away or changes what it says.
"""

# Nothing public tells: it depends on how TensorFlow was built, on the processor, and on TF_ENABLE_ONEDNN_OPTS.
from tensorflow.python.util import _pywrap_util_port


def has_onednn() -> bool:
    """True where TensorFlow's products on a CPU are oneDNN's, else they are Eigen's.

    TensorFlow 2.21 does so on x86 with AVX-512 VNNI and its successors, and where TF_ENABLE_ONEDNN_OPTS=1 is in the
    environment before TensorFlow is imported.
    """
    return _pywrap_util_port.IsMklEnabled()
