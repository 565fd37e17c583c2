"""Check cluster.yaml, on AWS.

Ray's schema knows the file's own keys, and botocore's model of EC2 knows the parameters of a node. The rules here are
about what both let through: it costs money, a failed start or an open port, and shows only on a running cluster.
"""

import importlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema
import yaml
from authentication import OPEN_PORT, authentication_problems, option_problems, token_file_problems
from images import image_problems
from problems import Problem, Rule, count_problems, rule_problems, schema_problems
from values import at, dotted, mapping, sequence, walk

# With x86-64 and an NVIDIA GPU that CUDA 13 still runs on: Turing and later, so not p2, p3 and g3.
_FAMILIES = "g4dn g5 g6 g6e g6f g7 g7e gr6 gr6f p4d p4de p5 p5e p5en p6-b200 p6-b300"
GPU_FAMILIES = frozenset(_FAMILIES.split())
MARKETS = ("spot", "capacity-block", "interruptible-capacity-reservation", "on-demand")
_RAY_START = re.compile(r"\bray\s+start\b[^;&|\n]*")
_INSTALLS_RAY = re.compile(r"\bpip3?\s+install\b[^;&|]*(?:(?<![\w./-])ray(?![\w-])|ray-wheels)")
_DOWNLOADS = re.compile(r"\b(curl|wget)\b.*https?://", re.DOTALL)
_COMPARES = re.compile(r"\bsha(256|512)sum\b[^|;&]*\s(-c|--check)\b")

_MARKET = "node_config.InstanceMarketOptions.MarketType"
_STARVES = "0: work on the head can starve what holds the cluster together"
_CACHED = "false: a stopped node keeps costing its disk, and comes back with an old container"
FILE_RULES: tuple[Rule, ...] = (
    ("provider.type", ("aws",), "aws: the node types are checked as EC2's"),
    ("provider.cache_stopped_nodes", (False,), _CACHED),
)
HEAD_RULES: tuple[Rule, ...] = (
    ("resources.CPU", (0,), _STARVES),  # Ray takes the machine's, where the file has no number
    ("max_workers", (None, 0), "0: more nodes of the head's type could do no work"),
    (_MARKET, (None, *MARKETS[1:]), "no spot instance: with the head goes the job's driver"),
)
WORKER_RULES: tuple[Rule, ...] = ((_MARKET, (None, *MARKETS), f"one of {', '.join(MARKETS)}, as EC2 writes them"),)
NODE_CONFIG = {
    "IamInstanceProfile": "expected {Name: ...}: without it the node cannot reach the bucket",
    "InstanceType": "expected a type, such as c6i.4xlarge",
    "ImageId": "expected an image: Ray's own is an Ubuntu 18.04",
    "SecurityGroupIds": "expected a group of your own: the group that Ray makes opens port 22 to the world",
}


def cluster_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a cluster file."""
    schema, defaults = _ray_data()
    config = json.loads(json.dumps(config, default=str))  # keys of a schema are texts; YAML also has numbers and dates
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        yield from schema_problems(error)
    values = {**defaults, **config}  # as Ray does it
    yield from rule_problems(values, FILE_RULES)
    yield from authentication_problems(values)
    yield from token_file_problems(values)
    yield from _commands(values)
    for path, address in walk(at(values, "provider.security_group")):
        if address in ("0.0.0.0/0", "::/0"):
            place = f"provider.security_group.{dotted(path[:2])}"
            yield Problem(place, address, "expected your own addresses: this opens the port to the world")
    keys = {"image", "head_image", "worker_image"}
    images = {dotted(path): str(text) for path, text in walk(values) if "docker" in path[-2:-1] and path[-1] in keys}
    yield from image_problems(images)
    nodes, head = mapping(values, "available_node_types"), values.get("head_node_type")
    if head not in list(nodes):
        yield Problem("head_node_type", head, f"expected one of available_node_types: {', '.join(map(str, nodes))}")
    for name in nodes:
        place, node = f"available_node_types.{name}", mapping(nodes, name)
        yield from rule_problems(node, HEAD_RULES if name == head else WORKER_RULES, place)
        yield from _node(place, node, is_head=name == head)
        docker = {**mapping(values, "docker"), **mapping(node, "docker")}
        options = [docker.get("run_options"), docker.get(f"{'head' if name == head else 'worker'}_run_options")]
        yield from option_problems(f"docker.run_options ({name})", options)
        total = values.get("max_workers")
        most = node.get("max_workers", 0 if name == head else total)
        yield from count_problems(place, ("min_workers", "max_workers"), node.get("min_workers", 0), most)
        if isinstance(most, int) and isinstance(total, int) and most > total:
            expected = f"expected at most the cluster's max_workers, {total}: the rest never starts"
            yield Problem(f"{place}.max_workers", most, expected)


@cache
def _ray_data() -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the schema and the defaults for AWS that Ray ships."""
    folder = importlib.resources.files("ray.autoscaler")
    schema = json.loads((folder / "ray-schema.json").read_text(encoding="utf-8"))
    return schema, yaml.safe_load((folder / "aws" / "defaults.yaml").read_text(encoding="utf-8"))


def _commands(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the commands that open the job port, run what nobody compared, or start no Ray that can grow."""
    for path, text in walk(values):
        if not isinstance(text, str) or not any(str(key).endswith("_commands") for key in path):
            continue
        if _INSTALLS_RAY.search(text):
            expected = "expected no other Ray than the image's; set the list: Ray's own is a nightly"
            yield Problem(dotted(path), text, expected)
        if _DOWNLOADS.search(text) and not _COMPARES.search(text):
            expected = "expected a comparison with its checksum (sha256sum -c) before anything of it runs"
            yield Problem(dotted(path), text, expected)
        host = _option(text, "--dashboard-host")
        if host not in (None, "127.0.0.1", "localhost", "::1"):
            expected = f"expected 127.0.0.1: {OPEN_PORT}; `ray dashboard` is the way in"
            yield Problem(f"{dotted(path)} --dashboard-host", host, expected)
    needed = {
        "head_start_ray_commands": (
            "--autoscaling-config",
            "~/ray_bootstrap_config.yaml, with which the cluster grows",
        ),
        "worker_start_ray_commands": ("--address", "$RAY_HEAD_IP:6379"),
    }
    for place, (option, value) in needed.items():
        starts = [start for text in sequence(values.get(place)) for start in _RAY_START.findall(str(text))]
        for start in starts or [""]:
            if _option(start, option) is None:
                yield Problem(place, start or None, f"expected ray start {option}={value}")


def _option(command: str, name: str) -> str | None:
    """Read an option of a command line; of several the last counts, and None stands for none."""
    found = re.findall(rf"(?:^|\s){re.escape(name)}[=\s]\s*(\S+)", command)
    return found[-1].strip("'\"") if found else None


def _node(place: str, node: Mapping[str, Any], *, is_head: bool) -> Iterator[Problem]:
    """Yield where a node's instance lacks what it needs, or has no GPU where one is declared."""
    config = mapping(node, "node_config")
    kind = str(config.get("InstanceType"))
    has_gpu, gpus = kind.partition(".")[0] in GPU_FAMILIES, at(node, "resources.GPU")
    if is_head and (gpus or has_gpu):
        yield Problem(f"{place}.resources.GPU", gpus, f"expected {_STARVES}")
    elif has_gpu and not gpus:
        expected = f"expected the number of GPUs of {kind}: nothing would use them"
        yield Problem(f"{place}.resources.GPU", gpus, expected)
    elif gpus and not has_gpu:
        expected = f"expected none on {kind}; the families with a usable GPU are {', '.join(sorted(GPU_FAMILIES))}"
        yield Problem(f"{place}.resources.GPU", gpus, expected)
    if not is_head and not at(node, "resources.CPU"):
        expected = "expected at least 1: every task and every worker asks for one"
        yield Problem(f"{place}.resources.CPU", at(node, "resources.CPU"), expected)
    given = set(NODE_CONFIG) if "LaunchTemplate" in config else set(config)
    given |= {"SecurityGroupIds"} if "NetworkInterfaces" in config else set()
    for key, reason in NODE_CONFIG.items():
        if key not in given:
            yield Problem(f"{place}.node_config.{key}", None, reason)
    yield from _ec2_problems(f"{place}.node_config", config)


def _ec2_problems(place: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the parameters that EC2 does not take: Ray passes them on, and no node starts."""
    try:
        parameters = ec2_model().operation_model("RunInstances").input_shape
    except ImportError:
        yield Problem(place, "...", "not compared with EC2's parameters; pip install boto3 does that", is_error=False)
        return
    own = {key: value for key, value in config.items() if key != "SubnetIds"}  # Ray's, in place of SubnetId
    validator = importlib.import_module("botocore.validate").ParamValidator()
    report = validator.validate({**own, "MinCount": 1, "MaxCount": 1}, parameters).generate_report()
    for line in report.splitlines():
        yield Problem(place, line.partition(", must be")[0], "expected the parameters of EC2's RunInstances")


@cache
def ec2_model() -> Any:
    """Load botocore's model of EC2. Raises: ImportError."""
    return importlib.import_module("botocore.session").get_session().get_service_model("ec2")
