"""Load on a running system, and an honest report of what came back.

``workload`` says when which lengths are asked for, ``prompts`` makes prompts of those lengths,
``client`` speaks HTTP and server-sent events, ``driver`` keeps to the arrivals, ``report`` counts.
"""
