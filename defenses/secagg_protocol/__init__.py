"""The secure aggregation protocol of Bonawitz et al. 2017, one step a module.

``encoding``: real numbers as ring words. ``keys``: key agreement, mask expansion, sealed messages.
``sharing``: t-of-n secret sharing. ``client`` and ``server``: the two sides, which meet only in
messages. ``execution``: one simulated run with drop-outs.
"""
