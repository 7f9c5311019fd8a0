"""One call on a GPU: is everything right there, and how fast is it? Prints a table, writes $OUT/gpu_day.json.

    python tests/gpu/gpu_day.py --budget 540 [--mae MAE_CHECKOUT TIMM_0_3_2]      # on the GPU machine
    python tests/gpu/gpu_day.py --device cpu --small --budget 120                 # dry run without one, also in the suite

On a machine without git's folder, or with an older one, a file COMMIT with the hash must be there at every call: without it
records say a wrong commit and `dirty`, and cannot be committed.

Sections come in the order of what would hurt most if it were wrong; each is skipped when the budget is spent,
and a failure in one does not stop the others. Not a test: it judges by printing `ok`, `DIFFERS` or a number.
"""

import argparse
import contextlib
import copy
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())

import numpy as np
import torch
import torch.nn.functional as F

from mim_bench.config.resolve import load_config
from mim_bench.config.run import MaskConfig
from mim_bench.data.crop import Crop
from mim_bench.data.image_set import ArraySet
from mim_bench.data.resample import resample
from mim_bench.data.run_data import Data, complete, open_data
from mim_bench.data.split import load_split
from mim_bench.evaluate import speed
from mim_bench.model import masking
from mim_bench.records import provenance
from mim_bench.records.record import DataFacts
from mim_bench.targets.build import make_target
from mim_bench.targets.tokenizer.encoder import initialize
from mim_bench.train import distributed, loop, pretrain
from mim_bench.train.fit import fitted_target

START = time.perf_counter()
parser = argparse.ArgumentParser()
parser.add_argument("--device", default="cuda")
parser.add_argument("--budget", type=float, default=540)
parser.add_argument("--small", action="store_true")
parser.add_argument("--mae", nargs=2)
parser.add_argument("--only")
ARGS = parser.parse_args()
DEVICE, CPU = torch.device(ARGS.device), torch.device("cpu")
CUDA = DEVICE.type == "cuda"
OUT = Path(os.environ.get("OUT", tempfile.gettempdir()))
FILE = OUT / "gpu_day.json"
RESULTS: dict[str, object] = json.loads(FILE.read_text()) if FILE.exists() and ARGS.only else {}
RESULTS["commit"] = provenance.code().commit


def left() -> float:
    return ARGS.budget - (time.perf_counter() - START)


def say(name: str, value: object) -> None:
    RESULTS[name] = value
    print(f"[{time.perf_counter() - START:5.0f} s] {name}: {value}", flush=True)
    FILE.write_text(json.dumps(RESULTS, indent=1, default=str))


def verdict(is_same: bool, more: str = "") -> str:
    return ("ok" if is_same else "DIFFERS") + (f" ({more})" if more else "")


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def median_ms(work, repeats: int = 10, warm: int = 3) -> float:
    for _ in range(warm):
        work()
    times = []
    for _ in range(repeats):
        sync()
        start = time.perf_counter()
        work()
        sync()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def stepper(name: str, preset: str, *overrides: str) -> speed.Stepper:
    given = ("data.in_chans=3", f"runtime.device={DEVICE.type}", *overrides)
    made = speed.Stepper(speed.sized(load_config(name, preset, given)), DEVICE)
    made.index = made.index.to(DEVICE)
    return made


# ---- 1. environment and ceilings


def ceilings() -> None:
    import importlib.metadata as meta

    names = (
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "pillow",
        "pydantic",
        "submitit",
        "scikit-image",
    )
    say("versions", {n: meta.version(n) for n in names} | {"python": sys.version.split()[0]})
    if not CUDA:
        return
    say("gpu", torch.cuda.get_device_name() + f", cudnn {torch.backends.cudnn.version()}")
    a = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    b = torch.empty_like(a)
    say("copy TB/s (read + write)", round(2 * a.numel() / median_ms(lambda: b.copy_(a)) / 1e9, 2))
    for label, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        m = torch.randn(8192, 8192, device=DEVICE, dtype=dtype)
        say(f"matmul TFLOP/s {label}", round(2 * 8192**3 / median_ms(lambda: m @ m, 5, 2) / 1e9, 0))
    torch.backends.cuda.matmul.allow_tf32 = False
    for tokens, k, n in (
        (4096 * 17, 192, 576),
        (4096 * 17, 192, 768),
        (4096 * 65, 192, 768),
        (256 * 197, 512, 2048),
    ):
        x = torch.randn(tokens, k, device=DEVICE, dtype=torch.bfloat16)
        w = torch.randn(n, k, device=DEVICE, dtype=torch.bfloat16)
        ms = median_ms(lambda: F.linear(x, w))
        say(
            f"linear {tokens}x{k}x{n}",
            f"{2 * tokens * k * n / ms / 1e9:.0f} TFLOP/s, {2 * tokens * (k + n) / ms / 1e9:.2f} TB/s",
        )


# ---- 2. the same crops, masks and targets on both devices, bit for bit


def exactness() -> None:
    generator = torch.Generator().manual_seed(0)
    for source, size, number in (
        ((28, 28), (32, 32), 512),
        ((32, 32), (32, 32), 512),
        ((96, 80), (64, 64), 64),
        ((256, 200), (224, 224), 16),
    ):
        images = torch.randint(256, (number, 3, *source), dtype=torch.uint8, generator=generator)
        index = torch.arange(number)
        for mode in ("random_size", "fixed_size"):
            boxes, flips = Crop(size=size, mode=mode).plan(
                index, torch.tensor(source).expand(number, 2), seed=3, epoch=5
            )
            here, there = (
                resample(images, boxes, flips, size),
                resample(images.to(DEVICE), boxes, flips, size),
            )
            say(f"crop {mode} {source[0]} -> {size[0]}", verdict(torch.equal(here, there.cpu())))
    index = torch.arange(4096)
    for sampling in ("random", "block", "grid"):
        sampler = masking.MaskSampler(MaskConfig(sampling=sampling, block_min_patches=5), (8, 8))
        noise = [sampler.noise(index.to(d), seed=1, epoch=2) for d in (CPU, DEVICE)]
        parts = [masking.split(n, sampler.num_visible) for n in noise]
        same = torch.equal(noise[0], noise[1].cpu()) and all(
            torch.equal(a, b.cpu()) for a, b in zip(*parts, strict=True)
        )
        say(f"mask {sampling}", verdict(same))

    images8 = torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8, generator=generator)
    images8[:32] = (torch.linspace(0, 255, 32).view(1, 1, 1, 32).expand(32, 3, 32, 32)).to(
        torch.uint8
    )  # gx only
    images8[32:64] = 128  # flat
    images = images8.float() / 255
    for name in ("pixel", "norm_pixel", "hog"):
        config = speed.sized(
            load_config(name, "cifar10", ("data.in_chans=3", "runtime.device=cpu"))
        )
        target = make_target(config)
        values = [copy.deepcopy(target).to(d)(images.to(d)).cpu() for d in (CPU, DEVICE)]
        say(
            f"target {name}, CPU and {DEVICE.type}",
            verdict(
                torch.equal(*values), f"largest {float((values[0] - values[1]).abs().max()):.1e}"
            ),
        )
        if left() > 60 and not ARGS.small:
            made = copy.deepcopy(target).to(DEVICE)
            compiled = torch.compile(made)(images.to(DEVICE)).cpu()
            say(
                f"target {name}, compiled",
                verdict(
                    torch.equal(compiled, made(images.to(DEVICE)).cpu()),
                    f"largest {float((compiled - values[1]).abs().max()):.1e}",
                ),
            )
    config = speed.sized(load_config("dvae", "cifar10", ("data.in_chans=3", "runtime.device=cpu")))
    target = make_target(config)
    target.skip_fit()
    torch.manual_seed(0)
    initialize(target.encoder)
    words = target(images)
    there = copy.deepcopy(target).to(DEVICE)
    say(
        "target dvae, share of equal words",
        float((there(images.to(DEVICE)).cpu() == words).float().mean()),
    )
    if CUDA:
        torch.backends.cudnn.allow_tf32 = True
        say(
            "target dvae in TF32, share of equal words",
            float((there(images.to(DEVICE)).cpu() == words).float().mean()),
        )
        torch.backends.cudnn.allow_tf32 = False


# ---- 3. the model against MAE's own numbers


def parity() -> None:
    from official import official_model
    from official import target as model_target

    golden = np.load(ROOT / "tests" / "golden" / "mae.npz")
    images = torch.from_numpy(golden["images_u8"]).permute(0, 3, 1, 2).float() / 255
    noise = torch.from_numpy(golden["noise"])
    want = float(golden["loss_norm_pix_true"])
    grads = {}
    for label, device, cast in (
        ("CPU float32", CPU, False),
        ("float32", DEVICE, False),
        ("bfloat16", DEVICE, True),
    ):
        model, target = official_model().to(device), model_target("norm_pixel").to(device)
        with torch.autocast(device.type, torch.bfloat16) if cast else contextlib.nullcontext():
            loss = model(images.to(device), target, noise.to(device))[0]
        loss.backward()
        grads[label] = torch.cat(
            [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
        )
        off = float((grads[label] - grads["CPU float32"]).norm() / grads["CPU float32"].norm())
        say(
            f"golden MAE loss, {label}",
            f"{float(loss.detach()):.6f} (want {want:.6f}), gradient off by {off:.1e}",
        )


# ---- 4. bit-equal again, bit-equal resumed, and the loss curves of the precisions


class Stop(Exception):
    pass


def run(
    preset: str,
    folder: Path,
    overrides: tuple[str, ...],
    stop: int | None = None,
    device: torch.device = DEVICE,
):
    def report(done: int, total: int, rate: float, loss: float) -> None:
        if done == stop:
            raise Stop

    torch._dynamo.reset()
    config = load_config(
        "norm_pixel",
        preset,
        [
            f"runtime.device={device.type}",
            "runtime.log_every_steps=1",
            "runtime.checkpoint_every_epochs=1",
            *overrides,
        ],
    )
    data = open_data(config, device)
    config = complete(config, data)
    target = fitted_target(config, data, folder, device).target
    model, _ = pretrain.pretrain(config, data, target, folder, device, report)
    losses = [
        json.loads(line)["loss"] for line in (folder / "pretrain.jsonl").read_text().splitlines()
    ]
    return {k: v.cpu() for k, v in model.state_dict().items()}, losses


def equal(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def resume() -> None:
    short = ("data.limit_images=640", "pretrain.epochs=3", "pretrain.warmup_epochs=1")
    # 197 tokens in the decoder: attention's backward may add in any order there
    long = (
        *short,
        "data.image_size=224",
        "model.patch_size=16",
        "model.depth=2",
        "mask.ratio=0.75",
        "augment.crop=none",
        "data.limit_images=192",
    )
    for label, overrides in (("17 tokens", short), ("197 tokens", long)):
        for compiled in ("off", "on"):
            if left() < 90 or (ARGS.small and (compiled == "on" or overrides is long)):
                continue
            with tempfile.TemporaryDirectory() as place:
                settings = (*overrides, f"runtime.compile={compiled}")
                whole, _ = run("tiny", Path(place) / "a", settings)
                again, _ = run("tiny", Path(place) / "b", settings)
                say(f"same run twice, {label}, compile {compiled}", verdict(equal(whole, again)))
                with contextlib.suppress(Stop):
                    run("tiny", Path(place) / "c", settings, stop=5)
                resumed, _ = run("tiny", Path(place) / "c", settings)
                say(f"resumed run, {label}, compile {compiled}", verdict(equal(whole, resumed)))


def replayed() -> None:
    """Steps replayed as one graph: the losses of steps that are not, and bit-equal again and resumed."""
    if not CUDA:
        return
    for compiled in ("off", "on"):
        settings = (
            "data.limit_images=640",
            "pretrain.epochs=3",
            "pretrain.warmup_epochs=1",
            f"runtime.compile={compiled}",
        )
        with tempfile.TemporaryDirectory() as place:
            places = {name: Path(place) / name for name in "abcd"}
            whole, losses = run("tiny", places["a"], (*settings, "runtime.graph=on"))
            again, _ = run("tiny", places["b"], (*settings, "runtime.graph=on"))
            with contextlib.suppress(Stop):
                run("tiny", places["c"], (*settings, "runtime.graph=on"), stop=15)
            resumed, _ = run("tiny", places["c"], (*settings, "runtime.graph=on"))
            plain, plain_losses = run("tiny", places["d"], (*settings, "runtime.graph=off"))
        off = np.abs(np.array(losses) - np.array(plain_losses)) / np.array(plain_losses)
        label = f"replayed steps, compile {compiled}"
        say(f"{label}: twice", verdict(equal(whole, again)))
        say(f"{label}: resumed", verdict(equal(whole, resumed)))
        most = max(float((whole[key] - plain[key]).abs().max()) for key in whole)
        more = f"losses off by at most {off.max():.1e}, weights by {most:.1e}"
        say(f"{label}: against steps of their own", verdict(off.max() < 1e-4, more))


def curves() -> None:
    steps = (
        ("data.limit_images=640",)
        if ARGS.small
        else ("data.limit_images=6400", "pretrain.epochs=2")
    )
    kinds = {
        "float32": ("runtime.precision=float32", "runtime.compile=off"),
        "bfloat16": ("runtime.precision=bfloat16", "runtime.compile=off"),
        "bfloat16 compiled": ("runtime.precision=bfloat16", "runtime.compile=on"),
    }
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for label, extra in kinds.items():
            if ARGS.small and "compiled" in label:
                continue
            found[label] = np.array(
                run("tiny", Path(place) / label.replace(" ", "-"), (*steps, *extra))[1]
            )
        if CUDA and left() > 200:
            found["CPU float32"] = np.array(
                run("tiny", Path(place) / "cpu", (*steps, *kinds["float32"]), device=CPU)[1]
            )
    for label, losses in found.items():
        off = np.abs(losses - found["float32"]) / found["float32"]
        say(
            f"loss curve {label}",
            f"{len(losses)} steps, last 20: {losses[-20:].mean():.5f}, off by at most {off.max():.1e}, mean {off.mean():.1e}",
        )


# ---- 5. what makes the host wait


def waits() -> None:
    if not CUDA:
        return
    cases = {"random": (), "grid": ("mask.sampling=grid",), "block": ("mask.sampling=block",)}
    for label, overrides in cases.items():
        made = stepper(
            "norm_pixel", "cifar10", "pretrain.batch_size=1024", "runtime.compile=off", *overrides
        )
        made.index = made.index.cpu()  # as the loop hands it over
        made.step()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            made.step()
        torch.cuda.set_sync_debug_mode("default")
        places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in seen})
        sync()
        start = time.perf_counter()
        made.step()
        queued = 1000 * (time.perf_counter() - start)
        sync()
        say(
            f"a step with {label} masks",
            f"{len(seen)} synchronisations a step {places}; queued in {queued:.1f} ms of {1000 * (time.perf_counter() - start):.1f}",
        )
    for size in (1024, 4096):  # pageable and pinned copies behind a busy device
        boxes, busy = (
            torch.zeros(size, 4, dtype=torch.int64),
            torch.randn(8192, 8192, device=DEVICE),
        )
        for label, host in (("pageable", boxes), ("pinned", boxes.pin_memory())):
            for _ in range(3):
                busy @ busy
            start = time.perf_counter()
            host.to(DEVICE, non_blocking=True)
            say(
                f"copy of {size} boxes, {label}, behind 60 ms of work",
                f"returns after {1000 * (time.perf_counter() - start):.2f} ms",
            )
            sync()


# ---- 6. attention, crops, targets


def parts() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if CUDA:
        backends = {
            "default": None,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "math": SDPBackend.MATH,
        }
        for batch, heads, tokens, width in (
            (4096, 3, 17, 64),
            (4096, 3, 65, 64),
            (1024, 3, 257, 64),
            (256, 12, 50, 64),
            (256, 16, 197, 32),
        ):
            shape = (batch, tokens, heads, width)
            q, k, v = (
                torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)
                .transpose(1, 2)
                .detach()
                .requires_grad_()
                for _ in range(3)
            )
            found = {}
            for label, backend in backends.items():

                def work(q=q, k=k, v=v):
                    F.scaled_dot_product_attention(q, k, v).sum().backward()

                try:
                    with sdpa_kernel(backend) if backend else contextlib.nullcontext():
                        found[label] = round(median_ms(work, 5), 3)
                except RuntimeError:
                    found[label] = None
            say(f"attention {batch} x {heads} x {tokens} x {width}, ms", found)
    number = 64 if ARGS.small else 4096
    images = torch.randint(256, (number, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    boxes, flips = Crop(size=(32, 32)).plan(
        torch.arange(number), torch.tensor((32, 32)).expand(number, 2), seed=0, epoch=0
    )
    say(
        f"crop of {number} at 32 px, ms",
        round(median_ms(lambda: resample(images, boxes, flips, (32, 32))), 3),
    )
    floats = images.float() / 255
    for name in ("norm_pixel", "hog", "dvae"):
        config = speed.sized(
            load_config(name, "cifar10", ("data.in_chans=3", "runtime.device=cpu"))
        )
        target = make_target(config).to(DEVICE)
        target.skip_fit()
        with torch.no_grad():
            found = {"eager": round(median_ms(lambda: target(floats)), 3)}
            if CUDA:
                fast = torch.compile(target)
                found["compiled"] = round(median_ms(lambda: fast(floats)), 3)
        say(f"target {name}, {number} images at 32 px, ms", found)
    if CUDA and left() > 150:  # the published tokenizer's size at 224 px
        over = (
            "data.in_chans=3",
            "runtime.device=cpu",
            "target.vocab_size=8192",
            "target.width=256",
            "target.blocks_per_group=2",
        )
        target = make_target(speed.sized(load_config("dvae", "imagenet", over))).to(DEVICE)
        target.skip_fit()
        floats = torch.rand(128, 3, 224, 224, device=DEVICE)
        for label, tf32, last in (
            ("float32", False, False),
            ("TF32", True, False),
            ("TF32 channels last", True, True),
        ):
            torch.backends.cudnn.allow_tf32 = tf32
            if last:
                target.to(memory_format=torch.channels_last)
            with torch.no_grad():
                say(
                    f"DALL-E's tokenizer, 128 images, {label}, ms",
                    round(median_ms(lambda: target(floats), 3, 2), 1),
                )
        torch.backends.cudnn.allow_tf32 = False


# ---- 7. whole steps


def as_graph(made: speed.Stepper):
    """The whole step as one CUDA graph: what the loop could reach if nothing of it stayed on the host."""
    groups = [{**group, "capturable": True} for group in made.optimizer.param_groups]
    made.optimizer = torch.optim.AdamW(
        groups, lr=1e-4, betas=(0.9, 0.95), fused=True, capturable=True
    )
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            made.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made.step()
    return graph.replay


def kernels(work) -> str:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        work()
        sync()
    events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return f"{len(events)} kernels, {sum(e.time_range.elapsed_us() for e in events) / 1000:.1f} ms on the GPU"


SMALL = ("(s) 4 x 96 patch 4, batch 256", "small", ())
TINY = ("tiny, batch 64", "tiny", ("pretrain.batch_size=64", "data.image_size=32"))
B = [
    (f"(b) ViT-T patch 4, batch {n}", "cifar10", (f"pretrain.batch_size={n}",))
    for n in (4096, 1024, 512)
]
A = ("(a) ViT-T patch 2, batch 2048", "cifar10", ("pretrain.batch_size=2048", "model.patch_size=2"))
C = ("(c) ViT-B/16 224, batch 256", "imagenet", ("pretrain.batch_size=256",))


def steps(cases=(SMALL, B[0], C)) -> None:
    for label, preset, overrides in [TINY] if ARGS.small else cases:
        for mode in ("eager", "compiled", "compiled + graph"):
            if left() < 60 or (ARGS.small and mode != "eager"):
                continue
            try:
                made = stepper(
                    "norm_pixel",
                    preset,
                    *overrides,
                    f"runtime.compile={'off' if mode == 'eager' else 'on'}",
                )
                work = as_graph(made) if mode.endswith("graph") else made.step
                begun = time.perf_counter()
                work()
                sync()
                first = time.perf_counter() - begun
                ms = median_ms(work, 10, 4)
                begun = time.perf_counter()
                work()
                queued = 1000 * (time.perf_counter() - begun)
                sync()
                rate = len(made.images) / ms * 1000
                say(
                    f"{label}, {mode}",
                    f"{ms:.2f} ms (queued in {queued:.1f}, first {first:.0f} s), {rate:,.0f} images/s, {made.flops / ms / 1e9:.0f} TFLOP/s; "
                    + (kernels(work) if CUDA else ""),
                )
            except Exception as error:
                say(f"{label}, {mode}", f"FAILED {str(error).splitlines()[0][:150]}")
            made = work = None
            if CUDA:
                torch.cuda.empty_cache()


def more_steps() -> None:
    if not ARGS.small:
        steps((TINY, *B[1:], A))


# ---- 8. the loop itself: crops, log, checkpoints


def whole_loop() -> None:
    number, batch = (256, 64) if ARGS.small else (50_000, 4096)
    pixels = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    splits = [
        load_split(ArraySet(pixels, np.arange(number) % 10, "noise"), device=DEVICE, name=n)
        for n in ("train", "test")
    ]
    facts = DataFacts(
        source="noise",
        fingerprint="0",
        split="test",
        num_train_images=number,
        num_evaluated_images=number,
        num_skipped_images=0,
        limited=False,
    )
    data = Data(
        train=splits[0],
        evaluate=splits[1],
        normalisation=((0.5,) * 3, (0.25,) * 3),
        facts=facts,
        num_workers=0,
    )
    small = ("model.depth=1", "model.decoder_depth=1") if ARGS.small else ()
    for every in (1, 1000):
        config = load_config(
            "norm_pixel",
            "cifar10",
            [
                f"pretrain.batch_size={batch}",
                "pretrain.epochs=6",
                "pretrain.warmup_epochs=1",
                f"runtime.device={DEVICE.type}",
                f"runtime.checkpoint_every_epochs={every}",
                *small,
            ],
        )
        config = complete(config, data)
        target = make_target(config).to(DEVICE)
        rates = []
        with tempfile.TemporaryDirectory() as place:
            torch._dynamo.reset()
            pretrain.pretrain(
                config,
                data,
                target,
                Path(place),
                DEVICE,
                lambda done, total, rate, loss: rates.append((time.perf_counter(), done)),
            )
        (t0, s0), (t1, s1) = rates[len(rates) // 3], rates[-1]
        say(
            f"whole loop, (b), checkpoint every {every} epochs",
            f"{(s1 - s0) * batch / max(t1 - t0, 1e-9):,.0f} images/s after the start",
        )


# ---- 9. NCCL, one rank


def nccl() -> None:
    if not CUDA:
        return
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29511",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1)
    values = torch.ones(4, device=DEVICE)
    dist.all_reduce(values)
    torch._dynamo.reset()
    made = stepper("norm_pixel", "cifar10", "pretrain.batch_size=256", "runtime.compile=on")
    module = DistributedDataParallel(
        distributed._Loss(made.task.loss, {"model": made.task.model}),
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    for _ in range(2):
        with loop.autocast(DEVICE, made.config.runtime):
            module(made.images, made.index, epoch=0, step=0).backward()
        made.optimizer.step()
    sync()
    say("NCCL, one rank, DDP around a compiled model", "ok")
    dist.destroy_process_group()


# ---- 10. facebookresearch/mae beside it


def mae() -> None:
    if not ARGS.mae:
        return
    import other_maes
    import speed_table

    official = other_maes.official_class(*ARGS.mae)
    for name, shape in speed_table.shapes_for(DEVICE).items():
        if left() > 60:
            stepper = speed_table.our_stepper(shape, "bfloat16", DEVICE)
            theirs = speed_table.their_step(other_maes.official_mae(official, shape), stepper)
            steps = {"mim_bench": stepper.step, "mae, eager": theirs}
            title = speed_table.title(name, shape)
            found = {"shape": title, "precision": "bfloat16"}
            found["seconds"] = speed_table.compare(name, steps, DEVICE)
            say(f"against mae, {title}", speed_table.line(found))


for section in (
    ceilings,
    exactness,
    parity,
    resume,
    replayed,
    curves,
    nccl,
    waits,
    steps,
    mae,
    whole_loop,
    parts,
    more_steps,
):
    if ARGS.only and section.__name__ not in ARGS.only.split(","):
        continue
    if left() < 20:
        say(section.__name__, "skipped: no time left")
        continue
    begun = time.perf_counter()
    try:
        section()
    except Exception:
        say(section.__name__, "FAILED: " + traceback.format_exc().strip().splitlines()[-1][:300])
        traceback.print_exc()
    print(f"--- {section.__name__}: {time.perf_counter() - begun:.0f} s", flush=True)
bad = [name for name, value in RESULTS.items() if str(value).startswith(("DIFFERS", "FAILED"))]
print(f"\n{len(RESULTS)} findings, {len(bad)} to look at: {bad}")
