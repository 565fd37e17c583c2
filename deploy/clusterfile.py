"""The rules for cluster.yaml, on AWS.

Ray's own validator knows the file's own keys, and nothing of what goes to EC2, to Docker or into a shell. What it lets
through costs money, a failed start or an open port, and shows only on a running cluster.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
from authentication import command_problems, option_problems, token_file_problems
from cluster import Cluster, Node, option
from ec2 import GPU_FAMILIES, MARKETS, cores, has_gpu, memory_bytes, unknown_keys
from problems import (
    FROM_ZERO,
    IDLE,
    LONGEST_IDLE_S,
    LOOPBACK,
    Problem,
    image_problems,
    in_gib,
    mapping,
    schema_problem,
    sequence,
    size_bytes,
)
from ray.autoscaler._private.util import fillout_defaults, prepare_config, validate_config

ANYWHERE = ("0.0.0.0/0", "::/0")
_INSTALLS_RAY = re.compile(r"\bpip3?\s+install\b[^;&|]*(?:(?<![\w./-])ray(?![\w-])|ray-wheels)")
_DOWNLOADS = re.compile(r"\b(curl|wget)\b.*https?://", re.DOTALL)
_COMPARES = re.compile(r"\bsha(256|512)sum\b[^|;&]*\s(-c|--check)\b")


def cluster_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a cluster file."""
    found = list(_ray_problems(config))
    try:
        cluster = Cluster(fillout_defaults(copy.deepcopy(dict(config))))
    except Exception:  # noqa: BLE001 (Ray's private code, on a file that it has refused above)
        return found
    for rule in (_provider, _commands, command_problems, _start, token_file_problems, _idle, _images):
        found += rule(cluster)
    for node in cluster.nodes:
        for node_rule in (_counts, _resources, _instance, _memory):
            found += node_rule(cluster, node)
        found += option_problems(node)
    return found


def _ray_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what Ray itself refuses, by private functions: the project pins Ray's version."""
    try:
        validate_config(prepare_config(copy.deepcopy(dict(config))))
    except jsonschema.ValidationError as error:
        yield from schema_problem(error)
    except Exception as error:  # noqa: BLE001 (whatever that code raises on a file it cannot use)
        yield Problem("", f"{type(error).__name__}: {error}", "Ray refuses the file")


def _provider(cluster: Cluster) -> Iterator[Problem]:
    provider = mapping(cluster.values, "provider")
    if provider.get("type") != "aws":
        yield Problem("provider.type", provider.get("type"), "expected aws: the node types are checked as EC2's")
    cached = provider.get("cache_stopped_nodes")
    if cached is not False:
        expected = "expected false: a stopped node keeps costing its disk, and comes back with an old container"
        yield Problem("provider.cache_stopped_nodes", cached, expected)
    for index, rule in enumerate(sequence(mapping(provider, "security_group").get("IpPermissions"))):
        ranges = [*sequence(mapping(rule).get("IpRanges")), *sequence(mapping(rule).get("Ipv6Ranges"))]
        for address in {address for one in ranges for address in mapping(one).values() if address in ANYWHERE}:
            place = f"provider.security_group.IpPermissions[{index}]"
            yield Problem(place, address, "expected your own addresses: this opens the port to the world")


def _commands(cluster: Cluster) -> Iterator[Problem]:
    for place, command in cluster.commands:
        if _INSTALLS_RAY.search(command):
            yield Problem(
                place, command, "expected no other Ray than the image's; set the list: Ray's own is a nightly"
            )
        if _DOWNLOADS.search(command) and not _COMPARES.search(command):
            expected = "expected a comparison with its checksum (sha256sum -c) before anything of it runs"
            yield Problem(place, command, expected)
        host = option(command, "--dashboard-host")
        if host not in (None, *LOOPBACK):
            expected = (
                "expected 127.0.0.1: the job port runs code for whoever reaches it; `ray dashboard` is the way in"
            )
            yield Problem(f"{place} --dashboard-host", host, expected)


def _start(cluster: Cluster) -> Iterator[Problem]:
    for place, command in cluster.starts(is_head=True):
        if option(command, "--autoscaling-config") is None:
            expected = "expected --autoscaling-config=~/ray_bootstrap_config.yaml: without it the cluster does not grow"
            yield Problem(place, command or None, expected)
    for place, command in cluster.starts(is_head=False):
        if option(command, "--address") is None:
            yield Problem(place, command or None, "expected ray start --address=$RAY_HEAD_IP:6379")


def _idle(cluster: Cluster) -> Iterator[Problem]:
    """Yield where nodes are kept long after their work."""
    minutes = {"idle_timeout_minutes": cluster.values.get("idle_timeout_minutes")}
    for node in cluster.nodes:
        seconds = node.values.get("idle_timeout_s")
        minutes[f"{node.place}.idle_timeout_s"] = seconds / 60 if isinstance(seconds, int | float) else None
    for place, idle in minutes.items():
        if isinstance(idle, int | float) and idle > LONGEST_IDLE_S / 60:
            yield Problem(place, f"{idle:g} minutes", IDLE, is_error=False)


def _images(cluster: Cluster) -> Iterator[Problem]:
    docker = mapping(cluster.values, "docker")
    images = {f"docker.{key}": docker[key] for key in ("image", "head_image", "worker_image") if docker.get(key)}
    for node in cluster.nodes:
        if image := mapping(node.values, "docker").get("worker_image"):
            images[f"{node.place}.docker.worker_image"] = image
    if not images:
        yield Problem("docker.image", None, "expected the image that deploy/Dockerfile makes")
    yield from image_problems(images)


def _counts(cluster: Cluster, node: Node) -> Iterator[Problem]:
    total, fewest = cluster.values.get("max_workers", 0), node.values.get("min_workers", 0)
    most = node.values.get("max_workers", 0 if node.is_head else total)
    if not all(isinstance(count, int) for count in (total, fewest, most)):
        return  # the schema says so
    if most > total:
        expected = f"expected at most the cluster's max_workers, {total}: the rest never starts"
        yield Problem(f"{node.place}.max_workers", most, expected)
    if fewest > most:
        yield Problem(f"{node.place}.min_workers", fewest, f"expected at most the type's max_workers, {most}")
    if node.is_head and most > 0:
        yield Problem(f"{node.place}.max_workers", most, "expected 0: more nodes of the head's type could do no work")
    elif fewest > 0:
        yield Problem(f"{node.place}.min_workers", fewest, f"expected 0: {FROM_ZERO}", is_error=False)


def _resources(_cluster: Cluster, node: Node) -> Iterator[Problem]:
    place, kind = f"{node.place}.resources", node.instance
    cpus, gpus = node.resources.get("CPU"), node.resources.get("GPU")
    if node.is_head:
        expected = "expected 0: work on the head can starve what holds the cluster together"
        if cpus != 0:  # where it says nothing, Ray takes the machine's
            yield Problem(f"{place}.CPU", cpus, expected)
        if gpus or has_gpu(kind):
            yield Problem(f"{place}.GPU", gpus, expected)
        return
    most = cores(kind)
    if not cpus:
        yield Problem(f"{place}.CPU", cpus, "expected at least 1: every task and every worker asks for one")
    elif most is not None and isinstance(cpus, int) and cpus > most:
        yield Problem(f"{place}.CPU", cpus, f"expected at most {most}, which {kind} has")
    if has_gpu(kind) and not gpus:
        yield Problem(f"{place}.GPU", gpus, f"expected the number of GPUs of {kind}: nothing would use them")
    if gpus and not has_gpu(kind):
        families = ", ".join(sorted(GPU_FAMILIES))
        yield Problem(f"{place}.GPU", gpus, f"expected none on {kind}; the families with a usable GPU are {families}")


def _instance(_cluster: Cluster, node: Node) -> Iterator[Problem]:
    place = f"{node.place}.node_config"
    yield from unknown_keys(place, node.config)
    reasons = {
        "IamInstanceProfile": "expected {Name: ...}: without it the node cannot reach the bucket",
        "InstanceType": "expected one, such as c6i.4xlarge",
        "ImageId": "expected one: Ray's own is an Ubuntu 18.04",
        "SecurityGroupIds": "expected a group of your own: the one that Ray makes opens port 22 to the world",
    }
    given = set(node.config)
    if "LaunchTemplate" in given:
        given |= reasons.keys()
    if "NetworkInterfaces" in given:
        given.add("SecurityGroupIds")
    yield from (Problem(f"{place}.{key}", None, reason) for key, reason in reasons.items() if key not in given)
    market = mapping(node.config, "InstanceMarketOptions").get("MarketType")
    where = f"{place}.InstanceMarketOptions.MarketType"
    if market is not None and market not in MARKETS:
        yield Problem(where, market, f"expected one of {', '.join(MARKETS)}, as EC2 writes them")
    elif node.is_head and market == "spot":
        yield Problem(where, market, "expected no spot instance: with the head goes the job's driver")


def _memory(cluster: Cluster, node: Node) -> Iterator[Problem]:
    given = option(node.run_options, "--shm-size")
    shared = None if given is None else size_bytes(given)
    place = f"docker.run_options ({node.name}) --shm-size"
    if shared is None:
        yield Problem(place, given, "expected a size such as 6g: Docker's own 64 MB hold no object store")
    declared = node.resources.get("memory")
    sizes = {place: (given, shared), f"{node.place}.resources.memory": (declared, size_bytes(str(declared)))}
    most = memory_bytes(node.instance)
    for where, (value, size) in sizes.items():
        if None not in (size, most) and size > most:
            yield Problem(where, value, f"expected at most {in_gib(most)}, which {node.instance} has")
    for where, stored in _stores(cluster, node):
        store = None if stored is None else size_bytes(stored)
        if store is None:
            yield Problem(where, stored, "expected a size in bytes: Ray's own is 30 % of the machine's memory")
        elif shared is not None and store > shared:
            expected = f"expected at most --shm-size, {in_gib(shared)}: Ray would use the disk instead"
            yield Problem(where, stored, expected)


def _stores(cluster: Cluster, node: Node) -> list[tuple[str, str | None]]:
    """Return where the size of a node's object store stands, and what it is."""
    if "object_store_memory" in node.resources:  # which Ray prefers
        return [(f"{node.place}.resources.object_store_memory", str(node.resources["object_store_memory"]))]
    name = "--object-store-memory"
    return [(f"{place} {name}", option(text, name)) for place, text in cluster.starts(is_head=node.is_head)]
