"""The state of a vLLM engine outside Switchyard, as ELRAR's datagrams to a bridge.

vLLM finds `plugin.ElrarStatLogger` by the entry point ``vllm.stat_logger_plugins`` wherever this
package is installed; ``VLLM_ELRAR_GATEWAY_HOST`` says where the bridge is. ``core.py`` decides what
is said and when, ``settings.py`` reads the variables, ``sender.py`` has the socket and the clock.
"""
