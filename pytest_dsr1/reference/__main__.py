"""The embedded engine as a command: `pytest-dsr1 engine`."""

from __future__ import annotations

import os
import sys

# Before NumPy is imported, since BLAS reads it once. Products this small gain nothing from a second thread, and lose
# tenfold as soon as something else runs on its core: the load generator, for one.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_variable] = "1"

from pytest_dsr1.reference.process import main  # noqa: E402  # it imports NumPy

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
