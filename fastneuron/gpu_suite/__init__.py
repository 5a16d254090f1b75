"""Everything that can only be proved where there is a card, in one command that needs no network.

``python -m fastneuron.gpu_suite --budget SECONDS --out DIR``: see `docs/gpu_suite.md`.
"""
