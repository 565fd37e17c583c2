"""How fast and in how much memory the network trains on stored embeddings.

    python -m benchmarks.training epoch     [--bags 200]   share of the machine's GEMM rate over an epoch, fp32 and bf16
    python -m benchmarks.training gpu       [--bags 200]   the same on a GPU, embeddings resident and streamed
    python -m benchmarks.training packed                   packed bags of 10 and 100 patches against one bag a step
    python -m benchmarks.training torchmil  [--bags 40]    against torchmil's attention MIL (the extra `bench`)
    python -m benchmarks.training giant     [--patches N]  memory of one bag of a million patches, trained and scored
    python -m benchmarks.training flat                     memory over 50 epochs of 20 bags

All take --root FOLDER. Bags are ragged, 1,000 to 20,000 x 2048 in half precision, written there once as `embed` writes
them. The GEMM rate is that of the step's own five products on 8,192 patches, measured before and after each epoch in
the same process; on a GPU on 262,144 patches.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch import distributed as dist

from benchmarks.trainingbags import EMBEDDING, make_bags
from distmil.bags.bag import Bag
from distmil.bags.sampler import StepPlanner
from distmil.config.loading import build_config
from distmil.config.root import Config
from distmil.models.baselines import make_network
from distmil.processes.background import in_background
from distmil.processes.malloc import keep_freed_memory
from distmil.training.engine import evaluate, keep_resident, train_epoch
from distmil.training.learner import Learner, fit_normaliser, make_learner
from distmil.training.workers import Workers

ROOT = Path(__file__).parents[1]
FEATURE, ATTENTION = 512, 256
FLOP = 2 * (2 * EMBEDDING * FEATURE) + 3 * (2 * FEATURE * 2 * ATTENTION)
"""Of one patch, forward and backward: the embedding needs no gradient."""
WARM_EPOCHS = 6
"""On a GPU: until most sizes of step have been recorded."""
WIDE = {"slides_per_step": 32, "patches_per_step": 262_144}


def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return FLOP/s of the step's products: the median of five rounds, on as many patches as suit the device."""
    rows = 262_144 if device.type == "cuda" else 8192
    x, f = (torch.randn(rows, width, device=device).to(dtype) for width in (EMBEDDING, FEATURE))
    w, v = (torch.randn(*shape, device=device).to(dtype) for shape in ((FEATURE, EMBEDDING), (2 * ATTENTION, FEATURE)))
    seconds = []
    for _ in range(6):
        started = _now(device)
        _ = x @ w.T, f.T @ x, f @ v.T, f.T @ f, f @ v
        seconds.append(_now(device) - started)
    return rows * FLOP / statistics.median(seconds[1:])


def _now(device: torch.device) -> float:
    """Return the time at which the device has done everything so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make(bags: Sequence[Bag], values: dict[str, Any], device: str = "cpu") -> tuple[Config, Learner, StepPlanner]:
    """Return what an epoch needs, with the default configuration but for ``values``."""
    config = build_config(values)
    torch.manual_seed(0)
    head = make_network(config.model, embedding_dim=EMBEDDING, num_classes=2)
    learner = make_learner(config, head, None, torch.device(device))
    fit_normaliser(learner, bags[:4], seed=0, batch_size=4096)
    return config, learner, StepPlanner(bags, config.bags, num_classes=2, seed=0)


def epoch_of(
    bags: Sequence[Bag], values: dict[str, Any], *, workers: Workers, repeats: int = 1, device: str = "cpu"
) -> dict[str, Any]:
    """Train epochs and return their rates beside the GEMM's: on a CPU after a step, on a GPU after epochs."""
    config, learner, planner = make(bags, values, device)
    is_gpu, total = learner.device.type == "cuda", sum(len(bag) for bag in bags)
    bags = keep_resident(bags, config, learner.device)
    first = _now(learner.device)
    if is_gpu:
        for epoch in range(WARM_EPOCHS):
            train_epoch(learner, bags, planner, config, epoch=epoch, workers=workers)
    else:
        train_epoch(learner, bags[:2], make(bags[:2], values)[2], config, epoch=0, workers=workers)
    found: dict[str, Any] = {"warm_s": _now(learner.device) - first}
    dtype = torch.bfloat16 if learner.is_half else torch.float32
    rates, shares, gemm = [], [], 0.0
    for epoch in range(repeats):
        before = gemm_rate(dtype, learner.device)
        started = _now(learner.device)
        train_epoch(learner, bags, planner, config, epoch=WARM_EPOCHS + epoch, workers=workers)
        seconds = _now(learner.device) - started
        both = [workers.gather(value) for value in (before, gemm_rate(dtype, learner.device))]
        gemm = statistics.mean(sum(values) for values in both)
        rates.append(total / seconds)
        shares.append(rates[-1] * FLOP / gemm)
    rate = statistics.median(rates)
    share = statistics.median(shares)
    return found | {"patches_s": rate, "rates": rates, "share": share, "shares": shares, "gemm": gemm,
                    "steps_s": rate * len(planner.slides(0)) / total,
                    "memory_gb": torch.cuda.max_memory_reserved() / 1e9 if is_gpu else 0.0}  # fmt: skip


# --- one measurement in a process of its own -----------------------------------------------------------------------


def job_epoch(job: dict[str, Any]) -> dict[str, Any]:
    """Train an epoch with all cores in one process, or with one worker a core."""
    if job["workers"] == 1:
        bags = make_bags(Path(job["root"]), job["sizes"])
        return epoch_of(bags, job["values"], workers=Workers(), repeats=job["repeats"], device=job["device"])
    out = Path(job["root"]) / f"ranks-{os.getpid()}"
    out.mkdir()
    mp.spawn(_rank, args=(job, str(out)), nprocs=job["workers"])
    return json.loads((out / "0.json").read_text())


def _rank(rank: int, job: dict[str, Any], out: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=job["workers"])
    found = epoch_of(make_bags(Path(job["root"]), job["sizes"]), job["values"], workers=Workers.current(),
                     repeats=job["repeats"])  # fmt: skip
    (Path(out) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class OneBag(nn.Module):
    """The method's network as one would write it for one bag: plain layers, no packing."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(EMBEDDING, FEATURE), nn.ReLU(), nn.Dropout(0.25))
        self.value = nn.Sequential(nn.Linear(FEATURE, ATTENTION), nn.Tanh())
        self.gate = nn.Sequential(nn.Linear(FEATURE, ATTENTION), nn.Sigmoid())
        self.score, self.c1, self.c2 = nn.Linear(ATTENTION, 1), nn.Linear(FEATURE, 2), nn.Linear(FEATURE, 2)

    def forward(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return C1's logits of the bag and C2's of its top-K patches."""
        f = self.phi(x)
        a = self.score(self.value(f) * self.gate(f))[:, 0]
        w = torch.softmax(nn.functional.logsigmoid(a), 0)
        return self.c1(w @ f)[None], self.c2(f[a.topk(min(k, max(1, -(-len(a) // 10)))).indices])


def job_one_bag(job: dict[str, Any]) -> dict[str, Any]:
    """Train the plain network, L2 and L3, one bag a step."""
    bags = make_bags(Path(job["root"]), job["sizes"])
    model = OneBag()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    entropy = nn.functional.cross_entropy

    def epoch() -> None:
        for bag in bags:
            x = torch.from_numpy(bag.source.take(slice(None)).astype(np.float32))
            whole, top = model(x, 8)
            label = torch.tensor([bag.label])
            loss = entropy(whole, label) + entropy(top, label.expand(len(top)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return _timed(epoch, bags, job["repeats"])


def job_torchmil(job: dict[str, Any]) -> dict[str, Any]:
    """Train torchmil's gated attention MIL of the same widths, its own padding, through a DataLoader."""
    from torchmil.data import collate_fn
    from torchmil.models import ABMIL

    bags = make_bags(Path(job["root"]), job["sizes"])

    class Data(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(bags)

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            x = torch.from_numpy(bags[i].source.take(slice(None)).astype(np.float32))
            return {"X": x, "Y": torch.tensor(float(bags[i].label))}

    device = job["device"]
    feature = nn.Sequential(nn.Linear(EMBEDDING, FEATURE), nn.ReLU(), nn.Dropout(0.25))
    model = ABMIL(in_shape=(EMBEDDING,), att_dim=ATTENTION, gated=True, feat_ext=feature).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(Data(), batch_size=job["batch"], shuffle=True, collate_fn=collate_fn)

    def epoch(most: int = len(bags)) -> None:
        for batch in itertools.islice(loader, most):
            label, x, mask = (batch[name].to(device) for name in ("Y", "X", "mask"))
            with torch.autocast(device, torch.bfloat16, enabled=job["half"]):
                _, losses = model.compute_loss(label, x, mask)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

    epoch(1)  # distmil warms up, too
    return _timed(epoch, bags, job["repeats"])


def _timed(epoch: Callable[[], None], bags: Sequence[Bag], repeats: int) -> dict[str, Any]:
    rates, device = [], torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    for _ in range(repeats):
        started = _now(device)
        epoch()
        rates.append(sum(len(bag) for bag in bags) / (_now(device) - started))
    return {"patches_s": statistics.median(rates)}


def _anonymous_mb() -> float:
    """Return the process's memory without what is mapped from files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


@contextmanager
def _peak(found: list[float]) -> Any:
    def watch(stop: threading.Event) -> None:
        while not stop.wait(0.02):
            found.append(_anonymous_mb())

    with in_background(watch, "peak"):
        yield


def job_giant(job: dict[str, Any]) -> dict[str, Any]:
    """Train a step on one bag of many patches and score it; return the peak memory beyond the mapped file."""
    bags = make_bags(Path(job["root"]), job["sizes"])
    config, learner, planner = make(bags, job["values"])
    found: dict[str, Any] = {"start_mb": _anonymous_mb()}
    for name, work in (
        ("train", lambda: train_epoch(learner, bags, planner, config, epoch=0, workers=Workers())),
        ("score", lambda: evaluate(learner, bags[-1:], config, workers=Workers())),
    ):
        peaks: list[float] = []
        started = time.perf_counter()
        with _peak(peaks):
            work()
        found |= {f"{name}_s": time.perf_counter() - started, f"{name}_peak_mb": max(peaks)}
    return found


def job_flat(job: dict[str, Any]) -> dict[str, Any]:
    """Train many epochs and return the memory after each."""
    bags = make_bags(Path(job["root"]), job["sizes"])
    config, learner, planner = make(bags, job["values"])
    memory = []
    for epoch in range(job["epochs"]):
        train_epoch(learner, bags, planner, config, epoch=epoch, workers=Workers())
        memory.append(_anonymous_mb())
    return {"memory_mb": memory}


JOBS = {"epoch": job_epoch, "one_bag": job_one_bag, "torchmil": job_torchmil, "giant": job_giant, "flat": job_flat}


def run(kind: str, root: Path, sizes: Sequence[int], **values: Any) -> dict[str, Any]:
    """Run a measurement in a process of its own."""
    job = {
        "kind": kind,
        "root": str(root),
        "sizes": list(sizes),
        "workers": 1,
        "repeats": 1,
        "values": {},
        "device": "cpu",
    } | values
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "job"], input=json.dumps(job), capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{kind} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- what is printed ---------------------------------------------------------------------------------------------


def ragged(count: int) -> list[int]:
    """Return sizes of 1,000 to 20,000 patches, evenly spread and shuffled."""
    sizes = np.linspace(1_000, 20_000, count).round().astype(int)
    return np.random.default_rng(0).permutation(sizes).tolist()


def print_epoch(root: Path, options: argparse.Namespace) -> None:
    """Share of the GEMM rate, one process of all cores and one worker a core, fp32 and bf16."""
    cores, rates = os.cpu_count() or 1, {}
    for precision in options.precisions:
        for workers in (1, cores):
            found = run("epoch", root, ragged(options.bags), workers=workers, repeats=options.repeats,
                        values={"training": {"precision": precision}})  # fmt: skip
            rates[precision, workers] = found["patches_s"]
            how = f"{cores} threads in one process" if workers == 1 else f"{workers} workers of one thread"
            print(f"{precision}, {how}: {found['patches_s']:,.0f} patches/s, {found['steps_s']:.2f} steps/s, "
                  f"{found['share']:.3f} of the GEMM rate ({found['gemm'] / 1e9:.0f} GFLOP/s; epochs "
                  f"{' '.join(f'{share:.3f}' for share in found['shares'])})", flush=True)  # fmt: skip
    for workers in (1, cores) if len(options.precisions) == 2 else ():
        print(f"bf16 / fp32, {workers} worker(s): {rates['bf16', workers] / rates['fp32', workers]:.2f}")


def print_gpu(root: Path, options: argparse.Namespace) -> None:
    """Share of the GPU's GEMM rate, and its memory; and torchmil's rate there."""
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    print(torch.cuda.get_device_name())
    sizes = ragged(options.bags)
    for precision, bags, training in (
        ("bf16", {}, {"resident": True}),
        ("bf16", {}, {"resident": False}),
        ("bf16", {}, {"resident": True, "cuda_graphs": False}),
        ("bf16", WIDE, {"resident": True}),
        ("bf16", WIDE, {"resident": False}),
        ("fp32", {}, {"resident": True}),
        ("fp32", {}, {"resident": False}),
    ):
        found = run("epoch", root, sizes, repeats=options.repeats, device="cuda",
                    values={"training": {"precision": precision, **training}, "bags": bags})  # fmt: skip
        rates = sorted(found["rates"])
        print(f"{precision}, {training}, {bags}: {found['patches_s']:,.0f} patches/s ({rates[0]:,.0f} to "
              f"{rates[-1]:,.0f}), {found['steps_s']:.0f} steps/s, {found['patches_s'] * FLOP / 1e12:.1f} TFLOP/s, "
              f"{found['share']:.3f} of the GEMM rate ({found['gemm'] / 1e12:.0f}); {found['memory_gb']:.1f} GB; the "
              f"first {WARM_EPOCHS} epochs took {found['warm_s']:.1f} s", flush=True)  # fmt: skip
    for half in (False, True):
        found = run("torchmil", root, sizes, batch=1, half=half, device="cuda")
        print(f"torchmil, one bag a batch, {'bf16' if half else 'fp32'}: {found['patches_s']:,.0f} patches/s")


def print_packed(root: Path, options: argparse.Namespace) -> None:
    """Packed bags against one bag a step."""
    for size in (10, 100):
        sizes = [size] * (20_000 // size)
        values = {"bags": {"slides_per_step": 128}, "losses": {"patch": 0.0, "attention": 0.0}}
        ratios, rows = [], []
        for _ in range(options.repeats):
            plain = run("one_bag", root / str(size), sizes, repeats=2)["patches_s"]
            packed = run("epoch", root / str(size), sizes, values=values, repeats=2)["patches_s"]
            rows.append((plain, packed))
            ratios.append(packed / plain)
        plain, packed = (statistics.median(column) for column in zip(*rows, strict=True))
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"bags of {size}: one a step {plain:,.0f} patches/s, packed {packed:,.0f}; "
              f"ratio {statistics.median(ratios):.2f} ({each})", flush=True)  # fmt: skip


def print_torchmil(root: Path, options: argparse.Namespace) -> None:
    """The same bags through torchmil and through distmil."""
    sizes, rows = ragged(options.bags), {}
    cores = os.cpu_count() or 1
    for _ in range(options.repeats):
        for precision in options.precisions:
            for batch in (1, 4, 8):
                rows.setdefault(f"torchmil, {batch} bag(s) a batch, {precision}", []).append(
                    run("torchmil", root, sizes, batch=batch, half=precision == "bf16")["patches_s"])  # fmt: skip
            for workers in (1, cores):
                rows.setdefault(f"distmil, {workers} worker(s), {precision}", []).append(
                    run("epoch", root, sizes, workers=workers, values={"training": {"precision": precision}})[
                        "patches_s"
                    ]
                )
    for name, values in rows.items():
        print(f"{name}: {statistics.median(values):,.0f} patches/s ({' '.join(f'{value:,.0f}' for value in values)})")


def print_giant(root: Path, options: argparse.Namespace) -> None:
    """Memory of one giant bag."""
    found = run("giant", root / "giant", [1_000, 1_000, options.patches])
    print(f"{options.patches:,} patches: trained in {found['train_s']:.0f} s, scored in {found['score_s']:.0f} s; "
          f"memory beyond the mapped file: {found['start_mb']:.0f} MB at the start, {found['train_peak_mb']:.0f} MB in "
          f"training, {found['score_peak_mb']:.0f} MB in scoring")  # fmt: skip


def print_flat(root: Path, options: argparse.Namespace) -> None:
    """Memory over many epochs."""
    values = {"training": {"precision": options.precisions[-1]}}
    memory = run("flat", root, ragged(20), epochs=50, values=values)["memory_mb"]
    marks = [0, 1, 4, 9, 19, 29, 39, 49]
    print("memory after epoch: " + ", ".join(f"{mark + 1}: {memory[mark]:.0f} MB" for mark in marks))


def main() -> None:
    """Run one kind of measurement."""
    if sys.argv[1:] == ["job"]:
        job = json.loads(sys.stdin.read())
        if job["kind"] != "torchmil":
            keep_freed_memory()
        torch.set_num_threads(os.cpu_count() or 1)
        print(json.dumps(JOBS[job["kind"]](job)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"epoch": print_epoch, "gpu": print_gpu, "packed": print_packed, "torchmil": print_torchmil,
             "giant": print_giant, "flat": print_flat}  # fmt: skip
    parser.add_argument("kind", choices=list(kinds))
    parser.add_argument("--root", type=Path, required=True, help="folder for the bags; 9 GB for 200 of them")
    parser.add_argument("--bags", type=int, default=None)
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.bags = options.bags or (40 if options.kind == "torchmil" else 200)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    kinds[options.kind](options.root.resolve() / "bags", options)


if __name__ == "__main__":
    main()
