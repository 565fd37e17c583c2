"""The fields of a RayJob as KubeRay 1.7 has them, down to the pod templates, which are Kubernetes' own.

Written from KubeRay's field reference. An API server drops a field that it does not know without a word; here it is a
mistake. Left out, and so refused, is what a job of distmil has no use for: other clusters' selectors, TLS by operator,
history servers.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
ANYTHING: Schema = {"type": "object"}
ITEMS: Schema = {"type": "array"}


def closed(required: str, **properties: Schema) -> Schema:
    """Return the schema of a mapping with these keys and no others."""
    return {
        "type": "object", "additionalProperties": False, "required": required.split(), "properties": properties
    }  # fmt: skip


def one_of(*values: str) -> Schema:
    """Return the schema of one of these words."""
    return {"enum": list(values)}


POD_TEMPLATE = closed(
    "spec",
    metadata=ANYTHING,
    spec={
        "type": "object",
        "required": ["containers"],
        "properties": {"containers": {"type": "array", "minItems": 1, "items": ANYTHING}},
    },
)
HEAD = closed(
    "rayStartParams template",
    enableIngress=FLAG,
    headService=ANYTHING,
    labels=TEXTS,
    rayStartParams=TEXTS,
    resources=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    template=POD_TEMPLATE,
)
WORKERS = closed(
    "groupName template",
    groupName=TEXT,
    idleTimeoutSeconds=COUNT,
    labels=TEXTS,
    maxReplicas=COUNT,
    minReplicas=COUNT,
    numOfHosts=COUNT,
    priority={"type": "integer"},
    rayStartParams=TEXTS,
    replicas=COUNT,
    resources=TEXTS,
    template=POD_TEMPLATE,
)
AUTOSCALER = closed(
    "",
    env=ITEMS,
    envFrom=ITEMS,
    idleTimeoutSeconds=COUNT,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    resources=ANYTHING,
    securityContext=ANYTHING,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    volumeMounts=ITEMS,
)
CLUSTER = closed(
    "headGroupSpec rayVersion",
    authOptions=closed("mode", mode=one_of("disabled", "token"), secretName=TEXT),
    autoscalerOptions=AUTOSCALER,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=HEAD,
    headServiceAnnotations=TEXTS,
    managedBy=TEXT,
    networkPolicy=ANYTHING,
    rayVersion=TEXT,
    suspend=FLAG,
    workerGroupSpecs={"type": "array", "minItems": 1, "items": WORKERS},
)
JOB = closed(
    "entrypoint rayClusterSpec",
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    deletionStrategy=ANYTHING,
    entrypoint=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    jobId=TEXT,
    managedBy=TEXT,
    metadata=TEXTS,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=TEXT,
    shutdownAfterJobFinishes=FLAG,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    submitterConfig=closed("", backoffLimit=COUNT),
    submitterPodTemplate=POD_TEMPLATE,
    suspend=FLAG,
    ttlSecondsAfterFinished=COUNT,
)
RAYJOB = closed(
    "apiVersion kind metadata spec",
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata={"type": "object", "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}]},
    spec=JOB,
)
