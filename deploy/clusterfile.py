"""The rules for cluster.yaml, on AWS.

Ray's own validator knows the file's own keys, and nothing of what goes to EC2, to Docker or into a shell. What it lets
through costs money, a failed start or an open port, and shows only on a running cluster.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jsonschema
from ec2 import GPU_FAMILIES, cores, has_gpu, unknown_keys
from problems import LOOPBACK, Problem, image_problems, in_gib, mapping, schema_problem, sequence, size_bytes
from ray.autoscaler._private.util import fillout_defaults, prepare_config, validate_config

ANYWHERE = ("0.0.0.0/0", "::/0")
TOKEN = "/.ray/auth_token"  # noqa: S105 (a path below a home)
_COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
_INSTALLS_RAY = re.compile(r"\bpip3?\s+install\b[^;&|]*(?:(?<![\w./-])ray(?![\w-])|ray-wheels)")
_AUTH_MODE = re.compile(r"(?:^|\s)(?:-e|--env)[=\s]\s*['\"]?RAY_AUTH_MODE=['\"]?([^\s'\"]*)")


def cluster_problems(config: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with a cluster file."""
    found = list(_ray_problems(config))
    try:
        cluster = Cluster(fillout_defaults(copy.deepcopy(dict(config))))
    except Exception:  # noqa: BLE001 (Ray's private code, on a file that it has refused above)
        return found
    for rule in (_provider, _commands, _start, _token_file, _images):
        found += rule(cluster)
    for node in cluster.nodes:
        for node_rule in (_counts, _resources, _instance, _authentication, _memory):
            found += node_rule(cluster, node)
    return found


@dataclass(frozen=True)
class Node:
    """A node type, and the Docker options that its containers start with."""

    name: str
    is_head: bool
    values: Mapping[str, Any]
    run_options: str

    @property
    def place(self) -> str:
        """Return where it stands."""
        return f"available_node_types.{self.name}"

    @property
    def config(self) -> Mapping[str, Any]:
        """Return what goes to EC2."""
        return mapping(self.values, "node_config")

    @property
    def resources(self) -> Mapping[str, Any]:
        """Return what Ray takes it to have."""
        return mapping(self.values, "resources")


@dataclass(frozen=True)
class Cluster:
    """A cluster file, with Ray's defaults where it says nothing."""

    values: Mapping[str, Any]

    @cached_property
    def nodes(self) -> list[Node]:
        """Return every node type."""
        types = mapping(self.values, "available_node_types")
        return [self._node(name, mapping(types, name)) for name in types]

    def _node(self, name: str, values: Mapping[str, Any]) -> Node:
        is_head = name == self.values.get("head_node_type")
        docker = {**mapping(self.values, "docker"), **mapping(values, "docker")}
        own = docker.get("head_run_options" if is_head else "worker_run_options")
        options = [*sequence(docker.get("run_options")), *sequence(own)]
        return Node(name, is_head, values, " ".join(map(str, options)))

    def start_command(self, *, is_head: bool) -> tuple[str, str]:
        """Return the place and the text of the command that starts Ray."""
        key = "head_start_ray_commands" if is_head else "worker_start_ray_commands"
        for index, command in enumerate(sequence(self.values.get(key))):
            if "ray start" in str(command):
                return f"{key}[{index}]", str(command)
        return key, ""


def option(command: str, name: str) -> str | None:
    """Return the value of an option in a command line, None if it is not there."""
    found = re.search(rf"(?:^|\s){re.escape(name)}[=\s]\s*(\S+)", command)
    return found[1].strip("'\"") if found else None


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
    lists = {key: cluster.values.get(key) for key in _COMMANDS}
    for node in cluster.nodes:
        lists |= {f"{node.place}.{key}": node.values.get(key) for key in _COMMANDS}
    for key, commands in lists.items():
        for index, command in enumerate(sequence(commands)):
            if _INSTALLS_RAY.search(str(command)):
                expected = "expected no other Ray than the image's; set the list: Ray's own installs a nightly"
                yield Problem(f"{key}[{index}]", command, expected)


def _start(cluster: Cluster) -> Iterator[Problem]:
    place, command = cluster.start_command(is_head=True)
    host = option(command, "--dashboard-host")
    if host not in (None, *LOOPBACK):
        expected = "expected 127.0.0.1: the job port runs code for whoever reaches it; `ray dashboard` is the way in"
        yield Problem(f"{place} --dashboard-host", host, expected)
    if option(command, "--autoscaling-config") is None:
        expected = "expected --autoscaling-config=~/ray_bootstrap_config.yaml: without it the cluster does not grow"
        yield Problem(place, command or None, expected)
    place, command = cluster.start_command(is_head=False)
    if option(command, "--address") is None:
        yield Problem(place, command or None, "expected ray start --address=$RAY_HEAD_IP:6379")


def _token_file(cluster: Cluster) -> Iterator[Problem]:
    mounts = mapping(cluster.values, "file_mounts")
    token = next((path for path in mounts if path.endswith(TOKEN)), None)
    if token is None:
        yield Problem("file_mounts", dict(mounts), f"expected HOME{TOKEN}: ~{TOKEN}, with the container's HOME")
        return
    commands = sequence(cluster.values.get("setup_commands"))
    if not any("chmod 600" in str(command) and TOKEN in str(command) for command in commands):
        expected = f"expected chmod 600 {token}: Ray makes the file readable for everyone"
        yield Problem("setup_commands", commands, expected)


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


def _resources(_cluster: Cluster, node: Node) -> Iterator[Problem]:
    place, kind = f"{node.place}.resources", str(node.config.get("InstanceType"))
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
    if node.is_head and market == "spot":
        expected = "expected no spot instance: with the head goes the job's driver"
        yield Problem(f"{place}.InstanceMarketOptions.MarketType", market, expected)


def _authentication(_cluster: Cluster, node: Node) -> Iterator[Problem]:
    place = f"docker.run_options ({node.name})"
    modes = _AUTH_MODE.findall(node.run_options)
    if not modes or modes[-1] != "token":
        yield Problem(f"{place} RAY_AUTH_MODE", modes[-1] if modes else None, "expected -e RAY_AUTH_MODE=token")
    if "RAY_AUTH_TOKEN=" in node.run_options:
        expected = "expected the token in its file alone: an option is in the process list of the node"
        yield Problem(f"{place} RAY_AUTH_TOKEN", "(not shown)", expected)


def _memory(cluster: Cluster, node: Node) -> Iterator[Problem]:
    given = option(node.run_options, "--shm-size")
    shared = None if given is None else size_bytes(given)
    if shared is None:
        expected = "expected a size such as 6g: Docker's own 64 MB hold no object store"
        yield Problem(f"docker.run_options ({node.name}) --shm-size", given, expected)
    place, command = cluster.start_command(is_head=node.is_head)
    place, stored = f"{place} --object-store-memory", option(command, "--object-store-memory")
    if "object_store_memory" in node.resources:  # which Ray prefers
        place, stored = f"{node.place}.resources.object_store_memory", str(node.resources["object_store_memory"])
    store = None if stored is None else size_bytes(stored)
    if store is None:
        yield Problem(place, stored, "expected a size in bytes: Ray's own is 30 % of the machine's memory")
    elif shared is not None and store > shared:
        expected = f"expected at most --shm-size, {in_gib(shared)}: Ray would use the disk instead"
        yield Problem(place, stored, expected)
