"""Which defence, at which level, keeps a client's experience private while the policy works?"""

__version__ = "0.1.0"
