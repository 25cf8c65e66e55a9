"""Every message that crosses the bus, and nothing else.

One module per noun. ``catalogue`` says for each message which subject it travels on, who sends it
and who reads it; ``examples`` ships one believable instance of each; ``frames`` documents the one
payload that is not a message, because it is paid per token.
"""
