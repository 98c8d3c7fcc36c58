"""What ``attacks.prior`` learns from samples: dynamics of vectors and of frames, correlations."""
