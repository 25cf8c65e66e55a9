"""The only way components reach each other.

``bus`` holds the promise (a Protocol), ``nats_bus`` and ``memory_bus`` keep it; ``subjects`` names
every subject as a function, ``codec`` turns messages into bytes, ``streams`` says what JetStream
keeps, ``permissions`` who may say and hear what, ``server`` runs a nats-server of our own.
"""
