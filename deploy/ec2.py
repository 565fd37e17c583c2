"""What EC2 takes of a node_config, and what its instance types have."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from problems import Problem, mapping, sequence, unknown_key

# The parameters of RunInstances (API of 2016-11-15, as of November 2026), without MinCount and MaxCount, which Ray
# sets, and with SubnetIds, which Ray takes in place of SubnetId.
_RUN_INSTANCES = """
    AdditionalInfo BlockDeviceMappings CapacityReservationSpecification ClientToken CpuOptions CreditSpecification
    DisableApiStop DisableApiTermination DryRun EbsOptimized EnablePrimaryIpv6 EnclaveOptions HibernationOptions
    IamInstanceProfile ImageId InstanceInitiatedShutdownBehavior InstanceMarketOptions InstanceType Ipv6AddressCount
    Ipv6Addresses KernelId KeyName LaunchTemplate LicenseSpecifications MaintenanceOptions MetadataOptions
    Monitoring NetworkInterfaces NetworkPerformanceOptions Operator Placement PrivateDnsNameOptions PrivateIpAddress
    RamdiskId SecondaryInterfaces SecurityGroupIds SecurityGroups SubnetId SubnetIds TagSpecifications UserData
"""
NODE_CONFIG = frozenset(_RUN_INSTANCES.split())
_NESTED = {
    "IamInstanceProfile": "Arn Name",
    "InstanceMarketOptions": "MarketType SpotOptions",
    "MetadataOptions": "HttpEndpoint HttpProtocolIpv6 HttpPutResponseHopLimit HttpTokens InstanceMetadataTags",
}
MARKETS = ("spot", "capacity-block", "interruptible-capacity-reservation", "on-demand")
_DISK = "DeviceName Ebs NoDevice VirtualName"
_EBS = """AvailabilityZone AvailabilityZoneId DeleteOnTermination EbsCardIndex Encrypted Iops KmsKeyId OutpostArn
    SnapshotId Throughput VolumeInitializationRate VolumeSize VolumeType"""
# With x86-64 and an NVIDIA GPU that CUDA 13 still runs on: Turing and later, so not p2, p3 and g3.
_FAMILIES = "g4dn g5 g6 g6e g6f g7 g7e gr6 gr6f p4d p4de p5 p5e p5en p6-b200 p6-b300"
GPU_FAMILIES = frozenset(_FAMILIES.split())

# GiB of memory a virtual core, the largest of each family's sizes; by the family's first letter, else by its name.
_GIB_PER_CORE = {
    "c": 2.7, "m": 4, "r": 8, "t": 4, "g4dn": 4, "g5": 4, "g6": 4, "g6e": 8, "g6f": 4, "g7e": 8, "gr6": 8, "gr6f": 8,
    "p4d": 12, "p4de": 12, "p5": 16, "p5e": 10.7, "p5en": 10.7, "p6-b200": 10.7, "p6-b300": 21.4,
}  # fmt: skip


def unknown_keys(place: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield each key of a node_config that EC2 does not know; Ray passes them on unread, and EC2 refuses the node."""
    yield from _unknown(place, config, NODE_CONFIG)
    for name, allowed in _NESTED.items():
        yield from _unknown(f"{place}.{name}", config.get(name), frozenset(allowed.split()))
    for index, disk in enumerate(sequence(config.get("BlockDeviceMappings"))):
        where = f"{place}.BlockDeviceMappings[{index}]"
        yield from _unknown(where, disk, frozenset(_DISK.split()))
        yield from _unknown(f"{where}.Ebs", mapping(disk, "Ebs"), frozenset(_EBS.split()))


def _unknown(place: str, values: Any, allowed: frozenset[str]) -> Iterator[Problem]:
    found = mapping(values)
    return (unknown_key(place, key, found[key], allowed) for key in found if key not in allowed)


def has_gpu(kind: str) -> bool:
    """Return whether an instance type has a GPU that the image can use."""
    return kind.partition(".")[0] in GPU_FAMILIES


def cores(kind: str) -> int | None:
    """Return an instance type's virtual cores by its size, None where the size does not say."""
    found = re.fullmatch(r"[\w-]+\.(\d*)(x?)large", kind)
    if found is None:
        return None
    return 4 * int(found[1] or 1) if found[2] else 2


def memory_bytes(kind: str) -> float | None:
    """Return what an instance type has of memory at most, None where its family or size does not say."""
    family, number = kind.partition(".")[0], cores(kind)
    group = family[:1] if re.match(r"[cmrt]\d", family) else family
    if number is None or group not in _GIB_PER_CORE:
        return None
    return number * _GIB_PER_CORE[group] * 2**30
