"""KV blocks from one vLLM engine to another: control over NATS, bytes over a link.

vLLM loads ``SwitchyardConnector`` by name (``kv_connector_module_path``) in the process of the
scheduler and in each rank's process. How to think about it, from the outside in:

    config.py      what an engine needs to be told, and how its agent tells it
    connector.py   the class that vLLM knows; only hands over to one of the two sides
    scheduling.py  the scheduler's side: which blocks go where. Decides, has no connection
    moving.py      a rank's side: threads that pull and serve, the bus, the table of what is held
    core.py        that table, pure: leases, fences, who may be named to vLLM, and when
    blocks.py      KV cache tensors to and from contiguous chunks
    link.py        the promise of a link; gloo.py and nccl.py keep it; rendezvous.py makes ends meet
"""
