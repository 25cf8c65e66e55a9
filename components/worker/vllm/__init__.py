"""vLLM in this process, as an ``Engine``. Nothing here imports torch or vllm before it must."""
