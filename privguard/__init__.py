"""Which defence, at which level, keeps an FRL client's experience private while the policy works?"""

__version__ = "0.1.0"
