"""Records of a batch, told apart by the structure of dense layers' gradients.

``dense_stacks`` finds the layers; ``unmixing`` separates records by their active units, whose
patterns ``head_patterns``, ``sparse_factors`` and ``binary_factors`` find and ``exchange`` chooses
among. ``row_spaces`` and ``subspace_search`` find single records whose inputs lie in the row spaces
of all layers at once.
"""
