"""From the gradients of a convolutional network down to the pixels of its states.

``conv_chains`` finds the convolutions, ``conv_features`` reads their outputs from the dense layers
above, ``conv_equations`` are what one layer's gradient says about its inputs. ``problem`` and
``knowledge`` hold what is known of a release; ``search`` goes down the layers with ``descent``,
``sparse_features`` and ``sparse_frames``, and ends with ``linearisation``, ``equations``,
``active_units`` and ``grey_levels`` on exact images.
"""
