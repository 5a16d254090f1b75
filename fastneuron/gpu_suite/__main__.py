"""``python -m fastneuron.gpu_suite``."""

import sys

from fastneuron.gpu_suite.command import main

if __name__ == "__main__":
    sys.exit(main())
