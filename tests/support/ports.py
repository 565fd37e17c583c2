"""Ports for servers that tests start."""

import random
import socket

SERVERS = range(20_000, 32_000)
"""Below the ports that systems give to connections (from 32,768 on Linux), above those of Ray's workers (to 19,999): a
port that is free now stays free until the server has it, and while the server is away."""


def free_port() -> int:
    """Choose a port that nobody listens on."""
    for port in random.SystemRandom().sample(SERVERS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("100 ports were tried, and none is free")
