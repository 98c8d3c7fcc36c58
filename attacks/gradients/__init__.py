"""A model's layers, and the gradients of many small groups of fake records, fast.

``layer_calls``, ``linear_layers`` and ``first_layers`` find what a model is made of by running its
loss. ``dense``, ``convolutional`` and ``unrolled`` are three ways to the gradients of groups, and
``choice`` picks one. ``replay``, with ``kernels``, repeats a recorded computation without autograd.
"""
