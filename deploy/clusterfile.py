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
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import yaml
from rules import OPEN_PORT, SETS_MODE, STARVES, Problem, by_place, rule_problems, schema_problems, text_problems, texts

# With x86-64 and an NVIDIA GPU that CUDA 13 still runs on: Turing and later, so not p2, p3 and g3.
_FAMILIES = "g4dn g5 g6 g6e g6f g7 g7e gr6 gr6f p4d p4de p5 p5e p5en p6-b200 p6-b300"
GPU_FAMILIES = frozenset(_FAMILIES.split())
CLUSTER_IMAGE = "docker.image"
TOKEN = "/home/ray/.ray/auth_token"  # noqa: S105 (a path; deploy/Dockerfile makes that home)
_CACHED = "false: a stopped node keeps costing its disk, and comes back with an old container"
_MARKET = "node_config.InstanceMarketOptions.MarketType"
FILE_RULES = (("provider.cache_stopped_nodes", (False,), _CACHED),)
HEAD_RULES = (
    ("resources.CPU", (0,), f"0: {STARVES}"),  # Ray takes the machine's, where the file has no number
    (_MARKET, (None, "on-demand", "capacity-block"), "no spot instance: with the head goes the job's driver"),
)
NODE_CONFIG = {
    ("SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"): "a group of your own: Ray's opens port 22 to all",
    ("IamInstanceProfile", "LaunchTemplate"): "{Name: ...}: without it the node cannot reach the bucket",
}
"""Keys of which a node needs one, the usual one first."""
_HOST = r"--dashboard-host[=\s]\s*['\"]?([^\s'\";&|]+)"
_HEAD_START = r"\b(ray\s+start\b(?=[^;&|\n]*--head)(?![^;&|\n]*--autoscaling-config)[^;&|\n]*)"
TEXT_RULES = (
    (_HOST, ("127.0.0.1", "localhost", "::1"), f"expected 127.0.0.1: {OPEN_PORT}; `ray dashboard` is the way in"),
    (_HEAD_START, (), "expected --autoscaling-config=~/ray_bootstrap_config.yaml: the cluster grows with it"),
    (r"^(0\.0\.0\.0/0|::/0)$", (), "expected your own addresses: this opens the port to the world"),
)


def cluster_problems(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with a cluster file."""
    shipped = importlib.resources.files("ray.autoscaler")
    schema = json.loads((shipped / "ray-schema.json").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((shipped / "aws" / "defaults.yaml").read_text(encoding="utf-8"))
    config = json.loads(json.dumps(config, default=str))  # keys of a schema are texts; YAML also has numbers and dates
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        yield from schema_problems(error)
    values = by_place({**defaults, **config})  # as Ray does it
    yield from rule_problems(values, FILE_RULES)
    yield from text_problems(values, TEXT_RULES)
    if PurePosixPath(str(values.get(f"file_mounts.{TOKEN}"))).name != PurePosixPath(TOKEN).name:
        expected = "expected ~/.ray/auth_token, or another file of that name: it becomes the key to the cluster"
        yield Problem(f"file_mounts.{TOKEN}", values.get(f"file_mounts.{TOKEN}"), expected)
    if not any("chmod 600" in text and TOKEN in text for text in texts(values, "setup_commands")):
        expected = f"expected chmod 600 {TOKEN}: Ray makes the file readable for everyone"
        yield Problem("setup_commands", values["setup_commands"], expected)
    types = values["available_node_types"]
    for name in types if isinstance(types, Mapping) else ():
        yield from _node_problems(values, name, is_head=name == values["head_node_type"])


def _node_problems(values: Mapping[str, Any], name: str, *, is_head: bool) -> Iterator[Problem]:
    """Yield what is wrong with a node type."""
    place, role = f"available_node_types.{name}", "head" if is_head else "worker"
    config = f"{place}.node_config"
    yield from rule_problems(values, HEAD_RULES if is_head else (), place)
    for keys, expected in NODE_CONFIG.items():
        if not any(f"{config}.{key}" in values for key in keys):
            yield Problem(f"{config}.{keys[0]}", None, f"expected {expected}")
    kind, gpus = str(values.get(f"{config}.InstanceType")), values.get(f"{place}.resources.GPU")
    has_gpu = kind.partition(".")[0] in GPU_FAMILIES
    if is_head and (gpus or has_gpu):
        yield Problem(f"{place}.resources.GPU", gpus, f"expected 0, and an instance without a GPU: {STARVES}")
    elif has_gpu and not gpus:
        yield Problem(f"{place}.resources.GPU", gpus, f"expected the GPUs of {kind}: nothing would use them")
    elif gpus and not has_gpu:
        expected = f"expected none on {kind}; the families with a usable GPU are {_FAMILIES}"
        yield Problem(f"{place}.resources.GPU", gpus, expected)
    lists = [f"{docker}.{key}run_options" for docker in ("docker", f"{place}.docker") for key in ("", f"{role}_")]
    if not any(re.search(SETS_MODE, text) for options in lists for text in texts(values, options)):
        yield Problem(f"docker.run_options ({name})", None, f"expected -e RAY_AUTH_MODE=token: {OPEN_PORT}")
    if isinstance(values.get(config), Mapping):
        yield from _ec2_problems(config, values[config])


def _ec2_problems(place: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the parameters that EC2 does not take: Ray passes them on, and no node starts."""
    try:
        parameters = ec2_model().operation_model("RunInstances").input_shape
        validator = importlib.import_module("botocore.validate").ParamValidator()
    except ImportError:
        yield Problem(place, "...", "not compared with EC2's parameters; pip install boto3 does that", is_error=False)
        return
    own = {key: value for key, value in config.items() if key != "SubnetIds"}  # Ray's, in place of SubnetId
    report = validator.validate({**own, "MinCount": 1, "MaxCount": 1}, parameters).generate_report()
    for line in report.splitlines():
        yield Problem(place, line.partition(", must be")[0], "expected the parameters of EC2's RunInstances")


@cache
def ec2_model() -> Any:
    """Load botocore's model of EC2. Raises: ImportError."""
    return importlib.import_module("botocore.session").get_session().get_service_model("ec2")
