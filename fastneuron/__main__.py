"""``python -m fastneuron`` is the ``fastneuron`` command."""

import sys

from fastneuron.cli import main

if __name__ == "__main__":
    sys.exit(main())
