"""All frameworks in one process, in float64."""

import os

# Both are read at import, which no test here may trigger earlier.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
