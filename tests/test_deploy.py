"""cluster.yaml, the RayJob, their checker, the image, and what travels with a submitted job."""

import copy
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

from distmil.config.root import Config
from distmil.pipeline import cluster as runtime
from distmil.pipeline.training import workers as fit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "deploy"))

import check  # noqa: E402
import clusterfile  # noqa: E402
import jobcommand  # noqa: E402
import rayjobfile  # noqa: E402

CLUSTER, RAYJOB = ROOT / "cluster.yaml", ROOT / "deploy" / "rayjob.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ABSENT = object()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")


def parts(path):
    """Split a dotted path with positions in brackets; a | is a dot inside a key."""
    return [int(part) if part.isdigit() else part.replace("|", ".") for part in re.findall(r"[^.\[\]]+", path)]


def changed(values, path, value):
    """Copy values with one place changed, or removed where the value is ABSENT."""
    values = copy.deepcopy(values)
    *way, last = parts(path)
    inner = values
    for part in way:
        inner = inner[part]
    if value is ABSENT:
        del inner[last]
    else:
        inner[last] = value
    return values


def lines(values):
    return [problem.line("FILE") for problem in check.check_values(values)]


def errors(values):
    return [line for line in lines(values) if line.startswith("FILE: error: ")]


def is_named(mistake, found):
    """Return whether a mistake's words are in some line of its level."""
    return any(mistake["says"] in line for line in found if line.startswith(f"FILE: {mistake.get('level', 'error')}: "))


@pytest.fixture(scope="module")
def cluster():
    return check.read_yaml(CLUSTER)


@pytest.fixture(scope="module")
def rayjob():
    return check.read_yaml(RAYJOB)


# --- the files as they are ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [CLUSTER, RAYJOB], ids=lambda file: file.name)
def test_the_committed_files_are_right_but_for_their_placeholders(file):
    found = check.check_values(check.read_yaml(file))
    assert not any(problem.is_error for problem in found)
    # A schema that is not installed is a warning too.
    rest = [p for p in found if "a placeholder" not in p.expected and "pip install" not in p.expected]
    assert rest == []
    assert {"REGISTRY", "SET-ME"} <= {word for p in found for word in ("REGISTRY", "SET-ME") if word in str(p.value)}


def test_both_clusters_have_the_same_pools_and_image(cluster, rayjob):
    head = cluster["head_node_type"]
    nodes = {name: node for name, node in cluster["available_node_types"].items() if name != head}
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in nodes.items()} == {
        name: (group["minReplicas"], group["maxReplicas"]) for name, group in groups.items()
    }
    images = {pod["template"]["spec"]["containers"][0]["image"] for pod in (spec["headGroupSpec"], *groups.values())}
    assert images == {cluster["docker"]["image"]}
    for name, group in groups.items():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        # Kubernetes keeps a core of each node for itself.
        assert int(limits["cpu"]) == nodes[name]["resources"]["CPU"] - 1
        assert int(limits.get("nvidia.com/gpu", 0)) == nodes[name]["resources"].get("GPU", 0)


def test_the_image_holds_this_release_and_the_locked_ray(cluster, rayjob):
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = re.search(r"^ray==(\S+)", lock, re.MULTILINE)[1]
    assert cluster["docker"]["image"].partition(":")[2] == f"{PROJECT['version']}-ray{locked}"
    assert cluster["docker"]["image"] in DOCKERFILE
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == locked == ray.__version__


# --- mistakes ----------------------------------------------------------------------------------------------------

HEAD, CPU, GPU = (f"available_node_types.{name}" for name in ("head", "cpu", "gpu"))
SPEC = "spec.rayClusterSpec"
HEAD_POD, CPU_POD, GPU_POD = (
    f"{SPEC}.{group}.template.spec" for group in ("headGroupSpec", "workerGroupSpecs[0]", "workerGroupSpecs[1]")
)
MISTAKES = yaml.safe_load((ROOT / "tests" / "support" / "deploy_mistakes.yaml").read_text(encoding="utf-8"))
BY_KUBERNETES = ("a field of a pod misspelt", "a field of a container misspelt", "a port that is a word")


def named(mistakes):
    return [pytest.param(mistake, id=mistake["mistake"]) for mistake in mistakes]


@pytest.mark.parametrize("mistake", named(MISTAKES["cluster"]))
def test_a_mistake_in_the_cluster_file_is_named(cluster, mistake):
    found = lines(changed(cluster, mistake["at"], mistake.get("set", ABSENT)))
    assert is_named(mistake, found), found


@pytest.mark.parametrize("mistake", named(MISTAKES["rayjob"]))
def test_a_mistake_in_the_rayjob_is_named(rayjob, mistake):
    if mistake["mistake"] in BY_KUBERNETES:
        pytest.importorskip("kubernetes_validate")
    found = lines(changed(rayjob, mistake["at"], mistake.get("set", ABSENT)))
    assert is_named(mistake, found), found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{CPU}.node_config.InstanceType", "m7i.8xlarge"),
        (f"{GPU}.node_config.InstanceType", "g5.4xlarge"),
        ("docker.image", "1234.dkr.ecr.eu-west-1.amazonaws.com/lab/distmil:2026-11-24-ray2.60.0"),
        ("docker.run_options[2]", "--env=RAY_AUTH_MODE='token'"),
        (f"{CPU}.node_config.KeyName", "mine"),
        (f"{CPU}.docker", {"worker_run_options": ["-v /scratch:/scratch"]}),
        ("setup_commands", ["sudo apt-get update", "chmod 600 /home/ray/.ray/auth_token"]),
        ("file_mounts./home/ray/|ray/auth_token", "/keys/lab/auth_token"),
        (f"{HEAD}.node_config.InstanceMarketOptions", {"MarketType": "capacity-block"}),
        ("head_start_ray_commands[1]", "ray start --autoscaling-config=~/a.yaml --head --dashboard-host 'localhost'"),
        (f"{GPU}.node_config", {"InstanceType": "g6.2xlarge", "NetworkInterfaces": [], "IamInstanceProfile": {}}),
        (f"{HEAD}.node_config.InstanceType", "x2idn.16xlarge"),
        ("docker.run_options[0]", "--shm-size=16g"),
        ("head_setup_commands", ["export RAY_AUTH_MODE=token; test $RAY_AUTH_MODE = token || exit 1"]),
        (f"{CPU}.node_config", {"LaunchTemplate": {"LaunchTemplateName": "a"}, "IamInstanceProfile": {"Name": "a"}}),
    ],
)
def test_sensible_changes_of_the_cluster_are_let_through(cluster, path, value):
    assert errors(changed(cluster, path, value)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (
            "spec.entrypoint",
            "python /home/ray/distmil/jobs/train.py --config=/home/ray/distmil/jobs/configs/camelyon16.yaml "
            "storage.root=s3://b/d cohort.manifest=/mnt/distmil/m.csv",
        ),
        ("spec.entrypoint", "python jobs/tune.py storage.root=s3://b/d search.folds=5"),
        ("spec.entrypoint", "python jobs/train.py storage.root=/mnt/distmil/s cohort.synthetic=12"),
        (f"{CPU_POD}.tolerations", [{"key": "spot", "operator": "Exists"}]),
        (
            f"{GPU_POD}.containers[0].env",
            [{"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
        ),
        (f"{HEAD_POD}.containers[0].env", [{"name": "RAY_AUTH_MODE", "value": "token"}]),
        ("spec.activeDeadlineSeconds", 86400),
        (f"{HEAD_POD}.nodeSelector", {"pool": "on-demand"}),
        (f"{SPEC}.workerGroupSpecs[1].minReplicas", 0),
        (f"{SPEC}.authOptions", {"mode": "token", "secretName": "distmil-token"}),
        (f"{CPU_POD}.containers[0].env", [{"name": "OMP_NUM_THREADS", "value": "1"}]),
    ],
)
def test_sensible_changes_of_the_rayjob_are_let_through(rayjob, path, value):
    assert errors(changed(rayjob, path, value)) == []


def test_an_image_that_hides_its_ray_is_a_warning(cluster):
    found = check.check_values(changed(cluster, "docker.image", "lab/distmil:0.1.0"))
    assert [problem.place for problem in found if not problem.is_error and "Ray version" in problem.expected] == [
        "docker.image"
    ]
    assert not any(problem.is_error for problem in found)


@pytest.mark.parametrize(
    ("file", "module", "package"),
    [(RAYJOB, "kubernetes_validate", "kubernetes-validate"), (CLUSTER, "botocore.validate", "boto3")],
)
def test_nodes_that_could_not_be_compared_are_a_warning(monkeypatch, file, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    found = check.check_values(check.read_yaml(file))
    assert len([problem for problem in found if f"pip install {package}" in problem.expected]) == 3
    assert not any(problem.is_error for problem in found)


def test_the_command_says_what_is_wrong_and_exits_by_it(tmp_path):
    bad = tmp_path / "cluster.yaml"
    text = CLUSTER.read_text(encoding="utf-8").replace("cache_stopped_nodes: false", "cache_stopped_nodes: true")
    bad.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "deploy/check.py", str(bad), "deploy/rayjob.yaml"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == check.BAD, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == (
        f"{bad}: error: provider.cache_stopped_nodes = True: "
        "expected false: a stopped node keeps costing its disk, and comes back with an old container"
    )
    assert f"{bad}: 1 error(s), 6 warning(s)" in lines
    assert lines[-1].startswith("deploy/rayjob.yaml: 0 error(s), ")


@pytest.mark.parametrize("command", ["distmil train", "python -m distmil train"])
def test_the_installed_command_is_a_job_too(rayjob, command):
    text = f"{rayjob['spec']['entrypoint']}".replace("python jobs/train.py", command)
    assert text.startswith(command)
    assert errors(changed(rayjob, "spec.entrypoint", text)) == []
    (line,) = errors(changed(rayjob, "spec.entrypoint", f"{text} training.num_wrkers=4"))
    assert "did you mean num_workers?" in line
    (line,) = errors(changed(rayjob, "spec.entrypoint", text.replace(" train ", " trian ")))
    assert "with one of the jobs tile, embed" in line


def test_a_config_that_only_the_cluster_can_read_is_a_warning(rayjob):
    text = "python jobs/train.py --config s3://b/d/searches/run/best.yaml storage.root=s3://b/d"
    found = lines(changed(rayjob, "spec.entrypoint", text))
    assert errors(changed(rayjob, "spec.entrypoint", text)) == []
    assert any("its --config cannot be read from here" in line for line in found)


def test_a_storage_root_in_the_config_counts_as_well(rayjob, monkeypatch, tmp_path):
    monkeypatch.setattr(jobcommand, "ROOT", tmp_path)
    changed_job = changed(rayjob, "spec.entrypoint", "distmil train --config mine.yaml")
    for root, says in [("s3://b/d", None), ("/elsewhere", "expected a mount that holds storage.root=/elsewhere")]:
        (tmp_path / "mine.yaml").write_text(f"storage: {{root: '{root}'}}", encoding="utf-8")
        found = errors(changed_job)
        assert all(says in line for line in found) if says else found == []
        assert len(found) == (3 if says else 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "[Errno 2] No such file or directory"),
        ("a: [1", "while parsing a flow sequence"),
        ("cluster_name: a\nprovider: {type: aws}\ncluster_name: b\n", "cluster_name is there twice"),
        ("cohort: {}", "expected a cluster file (with provider:) or a RayJob (with kind:)"),
        ("- 1", "expected a cluster file"),
    ],
)
def test_files_that_are_neither_exit_2(tmp_path, capsys, text, message):
    file = tmp_path / "some.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert check.main([str(file), str(RAYJOB)]) == check.UNREADABLE
    assert f"{file}: error: {message}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "RayJob"},
        {"kind": 3, "spec": []},
        {"kind": "RayJob", "spec": {"rayClusterSpec": {"workerGroupSpecs": [3], "headGroupSpec": []}}},
        {"provider": {}},
        {"provider": {"type": "aws"}, "docker": 3, "available_node_types": {"a": None}},
        {"provider": {"type": "aws"}, "head_node_type": [], "available_node_types": {3: {"node_config": []}}},
        {"provider": {"type": "aws"}, "setup_commands": 3, "file_mounts": [], "max_workers": "many"},
    ],
)
def test_a_ruin_of_a_file_is_refused_without_a_crash(values):
    assert errors(values) != []


def test_the_families_with_a_gpu_are_families_of_ec2():
    pytest.importorskip("botocore")
    kinds = clusterfile.ec2_model().shape_for("InstanceType").enum
    assert {kind.partition(".")[0] for kind in kinds} >= clusterfile.GPU_FAMILIES


# --- what the stages ask for -------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What one actor of tiling, one of embedding, and one training worker ask a cluster for that can grow."""
    seen = []

    def note(_worker, *, num_cpus, num_gpus=None, **_options):
        seen.append({"CPU": num_cpus} | ({"GPU": num_gpus} if num_gpus else {}))
        return SimpleNamespace(iter_rows=lambda: iter(()))

    monkeypatch.setattr(runtime, "start_ray", lambda: None)
    monkeypatch.setattr(runtime, "is_autoscaling", lambda: True)
    monkeypatch.setattr(fit, "is_autoscaling", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(runtime.ray.data, "from_items", lambda *_, **__: SimpleNamespace(map=note))
    list(runtime.map_slides([{}], object))
    list(runtime.map_slides([{}], object, num_gpus=1))
    tile, embed = seen
    return {"tile": tile, "embed": embed, "train": fit._resources(Config(), is_gpu=True)}


@pytest.mark.parametrize(("stage", "pool"), [("tile", "cpu"), ("embed", "gpu"), ("train", "gpu")])
def test_each_stage_starts_nodes_of_its_pool_and_never_the_head(cluster, asked, stage, pool):
    types = cluster["available_node_types"]
    requests = [asked[stage]] * 3
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    nodes, left = get_nodes_for(types, {}, cluster["head_node_type"], 20, requests, scorer)
    assert (set(nodes), left) == ({pool}, [])
    head = {"head": {**types["head"], "max_workers": 1}}
    assert get_nodes_for(head, {}, "head", 20, requests, scorer) == ({}, requests)


def test_pods_fit_the_stages_too(rayjob, asked):
    spec = rayjob["spec"]["rayClusterSpec"]
    has = {"head": {"CPU": float(spec["headGroupSpec"]["rayStartParams"]["num-cpus"])}}
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        has[group["groupName"]] = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}

    def fits(request):
        return {name for name, own in has.items() if all(own.get(key, 0) >= wanted for key, wanted in request.items())}

    assert {stage: fits(request) for stage, request in asked.items()} == {
        "tile": {"cpu", "gpu"}, "embed": {"gpu"}, "train": {"gpu"},
    }  # fmt: skip


# --- the image ---------------------------------------------------------------------------------------------------


def instructions(name):
    """Return the arguments of every such instruction of the Dockerfile."""
    text = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_image_has_a_python_of_the_project():
    (base,) = instructions("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+@sha256:[0-9a-f]{64}", base)[1]
    assert f"{version}.1" in SpecifierSet(PROJECT["requires-python"])
    header = (ROOT / "requirements-image.lock").read_text(encoding="utf-8")[:400]
    assert f"--python-version {version} " in header, "the lock was resolved from another Python on"


def test_the_image_copies_what_is_there_and_installs_by_hash():
    for copied in instructions("COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert "--require-hashes -r requirements-image.lock" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]
    assert len(installs) == 2


def test_the_image_has_the_tested_versions_and_no_tools_of_developers():
    whole, image = (
        dict(re.findall(r"^([\w.-]+)(?:\[.*])?==([^\s;\\]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in ("requirements.lock", "requirements-image.lock")
    )
    assert len(image) > 100
    assert {name: whole[name] for name in image} == image
    tools = {"pytest", "ruff", "mypy", "moto", "kubernetes-validate", "imagecodecs"}
    assert tools <= whole.keys()
    assert not tools & image.keys()
    assert {"boto3", "optuna", "ray", "torch", "setuptools"} <= image.keys()


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-image.lock"])
def test_locks_name_no_index(name):
    assert "://" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_network_policy_is_one_and_is_about_the_pods_of_the_job(rayjob):
    policy = yaml.safe_load((ROOT / "deploy" / "networkpolicy.yaml").read_text(encoding="utf-8"))
    pytest.importorskip("kubernetes_validate").validate(policy, rayjobfile.KUBERNETES, strict=True)
    labels = policy["spec"]["podSelector"]["matchLabels"]
    spec = rayjob["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == labels


def test_the_image_is_the_home_that_the_cluster_files_count_on(cluster, rayjob):
    assert instructions("USER") == ["ray"]
    (environment,) = instructions("ENV")
    home = dict(pair.split("=") for pair in shlex.split(environment))["HOME"]
    assert f"{home}/.ray/auth_token" == clusterfile.TOKEN
    assert clusterfile.TOKEN in cluster["file_mounts"]
    assert any("--uid 1000" in line and f"{home}/.ray" in line for line in instructions("RUN"))
    spec = rayjob["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert {pod["securityContext"]["runAsUser"] for pod in pods} == {1000}
    # A RayJob's entrypoint is relative to the image's folder.
    assert instructions("WORKDIR") == [f"{home}/distmil"] == [str(jobcommand.IMAGE_FOLDER)]
    assert "jobs jobs" in instructions("COPY")


# --- what travels ------------------------------------------------------------------------------------------------


def travelling(folder):
    """Return the files that `ray job submit --working-dir` would upload, by Ray's own functions."""
    found = []
    excludes = [_get_excludes(folder, get_runtime_env_default_excludes())]
    _dir_travel(folder, excludes, lambda path: found.append(path.relative_to(folder)), include_gitignore=True)
    return sorted(found)


@pytest.fixture(scope="module")
def uploaded():
    return travelling(ROOT)


def test_the_package_the_jobs_and_their_configs_travel(uploaded):
    needed = [*(ROOT / "distmil").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), *(ROOT / "jobs").rglob("*.yaml")]
    assert {path.relative_to(ROOT) for path in needed} <= set(uploaded)
    assert Path("jobs/configs/demo.yaml") in uploaded


def test_nothing_else_of_weight_travels(uploaded):
    at_home = {".ci", ".git", ".venv", "benchmarks", "build", "deploy", "distmil.egg-info", "docs", "tests"}
    assert {path.parts[0] for path in uploaded if path.parts} & at_home == set()
    assert sum((ROOT / path).stat().st_size for path in uploaded if (ROOT / path).is_file()) < 5e6


def test_keys_and_slides_in_the_checkout_stay_at_home(tmp_path):
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text(encoding="utf-8"), encoding="utf-8")
    stays = ["cohort/a.svs", "b.tiff", "mine.pem", ".env", "tests/test_a.py", "store/mlflow.db", "auth_token"]
    goes = ["distmil/tests.py", "distmil/docs/build/a.py", "jobs/configs/mine.yaml", "manifest.csv", "distmil/tiff.py"]
    for name in stays + goes:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = {str(path) for path in travelling(tmp_path) if (tmp_path / path).is_file()}
    assert files == {*goes, ".rayignore"}
