"""The posterior of records given a release: its equations, its modes and its mean.

``misfits`` measure gradients against a release under the channel's law; ``formed_misfit`` is the
general path, ``misfit_choice`` picks, ``layer_derivatives`` and ``normal_equations`` differentiate.
``posterior`` adds the prior; ``search`` walks many posteriors at once, from ``starts``, on networks
with softened kinks (``smoothed_relu``); ``problem`` holds several releases as one. ``first_layer``
is the posterior from the first layers alone.
"""
