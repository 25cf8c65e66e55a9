"""`switchyard tiny-model`: something that a real engine can run, made here in seconds."""

import argparse
from pathlib import Path

from components.cli.errors import CommandFailed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="where to; made if it is not there")


def run(args: argparse.Namespace) -> int:
    from components.worker.vllm.tiny_model import build

    try:
        build(args.directory)
    except ImportError as error:
        raise CommandFailed(
            f"this needs torch and transformers, as vLLM has them: {error}"
        ) from error
    print(args.directory)
    return 0
