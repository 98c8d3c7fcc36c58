"""What ``privguard.cli`` calls: options to specifications, specifications to work, work to text.

``commands`` compute, ``queries`` answer from what is recorded, ``reports`` hold the subcommands
that read runs; ``options`` (with ``target_epsilon``) checks what the user typed.
"""
