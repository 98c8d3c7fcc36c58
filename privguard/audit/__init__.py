"""Around ``privguard.auditing``: what a cell keeps for the attacks, and what they are told.

``captures`` and ``prior_samples`` are written in training; ``observing`` and ``granted_prior`` make
of them what the server sees and knows; ``release_noise`` measures the defence; ``examples`` and
``chosen_examples`` keep a few answers for the report.
"""
