"""Answers learned from releases that the adversary simulates itself.

``channel_simulation`` does to gradients what a defence would, ``simulated_releases`` draws records
from the prior and defends their gradients, ``release_features`` and ``gauss_newton_features`` are
what a regression sees of a release, ``regression`` is the regression.
"""
