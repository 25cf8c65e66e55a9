"""`switchyard plan links`: how many groups of GPUs a layout needs, and what they cost in memory.

    one group per instance whose tensor parallel size is above 1       (its own ranks)
    one link per pair of a prefill and a decode instance and per rank  (KV is handed over)

Every group of NCCL costs each GPU in it buffers: about 100 MB with 16 channels, 52 MB with 8
(NCCL_MAX_NCHANNELS). So a link is cheap and a matrix of links is not: the total grows with
prefill x decode.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Final

from components.cli.errors import CommandFailed

#: Megabytes per group and GPU, by the number of channels; measured with NCCL by others.
MB_PER_GROUP: Final = {8: 52, 16: 100}
INSTANCES_MAX: Final = 100_000
USAGE_EXIT: Final = 64


class BadLayout(ValueError):
    """No such layout."""


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """Groups by kind; links and megabytes of the GPU of each kind of instance, and of all GPUs.

    Links are made when a pair first hands KV over, so this is what a busy fleet comes to.
    """

    prefill: int
    decode: int
    tp: int
    channels: int
    instance_groups: int
    pair_links: int
    groups: int
    links_per_prefill_gpu: int
    links_per_decode_gpu: int
    prefill_gpu_mb: int
    decode_gpu_mb: int
    total_mb: int


def plan_links(prefill: int, decode: int, tp: int, channels: int = 8) -> LinkPlan:
    """The plan of ``prefill`` and ``decode`` instances of ``tp`` GPUs; raises ``BadLayout``."""
    if not (0 < prefill <= INSTANCES_MAX and 0 < decode <= INSTANCES_MAX and 0 < tp <= 1024):
        raise BadLayout("prefill, decode and tp must be above 0 (and within reason)")
    if channels not in MB_PER_GROUP:
        raise BadLayout(f"channels must be one of {', '.join(map(str, MB_PER_GROUP))}")
    own = 1 if tp > 1 else 0
    pair_links = prefill * decode * tp
    instance_groups = (prefill + decode) * own
    per_group_mb = MB_PER_GROUP[channels]
    prefill_gpu_mb = (decode + own) * per_group_mb
    decode_gpu_mb = (prefill + own) * per_group_mb
    return LinkPlan(
        prefill=prefill,
        decode=decode,
        tp=tp,
        channels=channels,
        instance_groups=instance_groups,
        pair_links=pair_links,
        groups=instance_groups + pair_links,
        links_per_prefill_gpu=decode,
        links_per_decode_gpu=prefill,
        prefill_gpu_mb=prefill_gpu_mb,
        decode_gpu_mb=decode_gpu_mb,
        total_mb=tp * (prefill * prefill_gpu_mb + decode * decode_gpu_mb),
    )


def advice(plan: LinkPlan, gpu_mb: int) -> str:
    """A sentence on whether it fits; ``gpu_mb`` is what a GPU can spare for it."""
    worst_mb = max(plan.prefill_gpu_mb, plan.decode_gpu_mb)
    if worst_mb <= gpu_mb:
        return f"fits: the fullest GPU needs {worst_mb} MB of the {gpu_mb} MB set aside for it"
    peers = max(0, gpu_mb // MB_PER_GROUP[plan.channels] - (1 if plan.tp > 1 else 0))
    return (
        f"does not fit: the fullest GPU needs {worst_mb} MB of {gpu_mb} MB; let each instance hand "
        f"over to at most {peers} others (split the fleet into shards), or use fewer channels"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    topics = parser.add_subparsers(dest="topic", required=True)
    links = topics.add_parser("links", help="groups and memory of the links that hand KV over")
    links.add_argument("--prefill", type=int, required=True, metavar="N", help="instances")
    links.add_argument("--decode", type=int, required=True, metavar="M", help="instances")
    links.add_argument("--tp", type=int, default=1, metavar="T", help="GPUs per instance")
    links.add_argument("--channels", type=int, default=8, help="of NCCL, 8 or 16 (default: 8)")
    links.add_argument(
        "--gpu-mb", type=int, default=8192, help="what a GPU can spare for it (default: 8192)"
    )
    links.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> int:
    try:
        plan = plan_links(options.prefill, options.decode, options.tp, options.channels)
    except BadLayout as error:
        raise CommandFailed(str(error), USAGE_EXIT) from error
    fits = max(plan.prefill_gpu_mb, plan.decode_gpu_mb) <= options.gpu_mb
    if options.json:
        print(json.dumps({**asdict(plan), "gpu_mb": options.gpu_mb, "fits": fits}))
        return 0
    print(
        f"{plan.prefill} prefill and {plan.decode} decode instances of {plan.tp} GPU"
        f"{'s' if plan.tp > 1 else ''}, {plan.channels} channels"
    )
    print(f"  groups            {plan.groups:>9}")
    print(f"    of instances    {plan.instance_groups:>9}")
    print(f"    pairs of ranks  {plan.pair_links:>9}")
    print(f"  per prefill GPU   {plan.prefill_gpu_mb:>9} MB in {plan.links_per_prefill_gpu} links")
    print(f"  per decode GPU    {plan.decode_gpu_mb:>9} MB in {plan.links_per_decode_gpu} links")
    print(f"  all GPUs          {plan.total_mb:>9} MB")
    print(advice(plan, options.gpu_mb))
    return 0
