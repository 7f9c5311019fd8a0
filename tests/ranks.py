"""The work of each rank of test_distributed.py: `torchrun --nproc-per-node 2 tests/ranks.py OUT [die|wait]`.

The test itself calls the same functions as the only rank, to compare with.
"""

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from conftest import SMALL

from mim_bench.config.resolve import load_config
from mim_bench.data.run_data import complete, open_data
from mim_bench.errors import UserError
from mim_bench.experiment.run import execute
from mim_bench.train import distributed, preemption
from mim_bench.train.distributed import ParallelLoss
from mim_bench.train.pretrain import PretrainTask, build_model, load_weights

COMMON = (
    *SMALL,
    "data.limit_images=256",
    "pretrain.epochs=5",
    "pretrain.batch_size=64",  # 20 steps
    "finetune.batch_size=40",
    "finetune.mixup=0.8",
    "finetune.cutmix=1.0",
    "finetune.drop_path=0.3",
    "finetune.holdout_fraction=0.1",
    "linear.augment=true",
    "linear.batch_size=50",
    "evaluate.batch_size=60",  # 5 batches for 2 ranks, the last one short
    "runtime.log_every_steps=1",
    "runtime.precision=float32",  # two ranks add in another order, of which bfloat16 leaves more
)
WHOLE = ("evaluate.protocols=knn,linear,finetune", *COMMON)
SHARDED = ("evaluate.protocols=finetune", *COMMON, "runtime.shard=true")
ONLY = ("evaluate.protocols=[]", *COMMON)
PARTS = (*ONLY, "pretrain.accumulation_steps=2")
FOLLOWERS = ("ema_feature", "ema_token", "latent_cluster", "contrastive")
"""Targets that follow the student."""


class Stop(Exception):
    """Raised by the handler of the preemption signal."""


def run(out, name, *overrides, target="norm_pixel"):
    config = load_config(target, "tiny", list(overrides))
    return execute(config, out=Path(out) / name, command="test").folder


def record_draws(draws):
    """Records the inputs of pre-training: step -> sample -> digest of the crop and of the mask."""
    loss = PretrainTask.loss

    def recorded(self, inputs, index, *, epoch, step):
        noise = self.sampler.noise(index, seed=self.seed, epoch=epoch)
        for sample, image, row in zip(index.tolist(), inputs, noise, strict=True):
            content = image.contiguous().numpy().tobytes() + row.numpy().tobytes()
            draws.setdefault(str(step), {})[str(sample)] = hashlib.sha256(content).hexdigest()
        return loss(self, inputs, index, epoch=epoch, step=step)

    PretrainTask.loss = recorded
    return lambda: setattr(PretrainTask, "loss", loss)


def interrupted(out, name, at_step, *overrides):
    """The last rank is preempted within a step: every rank saves after it and stops."""

    def stop(number, frame):
        raise Stop

    def signalled(self, inputs, index, *, epoch, step):
        if step == at_step and distributed.rank() == distributed.size() - 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return loss(self, inputs, index, epoch=epoch, step=step)

    loss, before = PretrainTask.loss, signal.signal(signal.SIGUSR2, stop)
    PretrainTask.loss = signalled
    try:
        with preemption.deferred():
            run(out, name, *overrides)
    except Stop:
        return sorted(path.stem for path in (Path(out) / name).glob("*/pretrain/*.safetensors"))[
            -1:
        ]
    finally:
        PretrainTask.loss = loss
        signal.signal(signal.SIGUSR2, before)
    return []


def gradients(num):
    """Norms of a gradient after each micro-batch of a step; the last one averages over ranks."""
    layer = torch.nn.Linear(4, 1)
    torch.nn.init.ones_(layer.weight)
    loss = ParallelLoss(lambda x, i, **_: layer(x).square().mean(), {"model": layer})
    norms = []
    for number in range(num):
        x = torch.full((2, 4), 1.0 + distributed.rank())
        with loss.micro_batch(is_last=number == num - 1):
            loss(x, torch.arange(2), epoch=0, step=0).backward()
        assert layer.weight.grad is not None
        norms.append(layer.weight.grad.norm().item())
    return norms


def shared_error():
    """What a rank sees of a user's error that only rank 0 meets, and of a bug."""

    def fail():
        raise UserError("disk full")

    def bug():
        raise KeyError("x")

    seen = []
    for function in (fail, bug):
        try:
            distributed.on_main(function)
        except Exception as error:
            seen.append([type(error).__name__, str(error), distributed.is_reported(error)])
    return seen


def die(out):
    """Rank 1 meets an error of its own in the third step."""
    loss = PretrainTask.loss

    def broken(self, inputs, index, *, epoch, step):
        if step == 2 and distributed.rank() == 1:
            raise UserError("image 7 cannot be read")
        return loss(self, inputs, index, epoch=epoch, step=step)

    PretrainTask.loss = broken
    from mim_bench.cli import main

    main.main(["run", "--target", "pixel", "--out", out, *ONLY])


def wait(out):
    """Rank 0 works alone for longer than a rank may wait for the others."""
    with distributed.joined(timeout_minutes=0.05):
        value = distributed.on_main(lambda: time.sleep(6) or "fitted")
    (Path(out) / f"rank-{os.environ['RANK']}").write_text(value)


def sharded_elements(out):
    """Elements of the sharded model's largest parameter that this rank holds, and in all."""
    from mim_bench.train.distributed import shard

    config = load_config("norm_pixel", "tiny", list(SHARDED))
    config = complete(config, open_data(config, torch.device("cpu")))
    model = build_model(config, 64)
    num_all = sum(p.numel() for p in model.parameters())
    shard(model, config.runtime)
    return [sum(p.to_local().numel() for p in model.parameters()), num_all]  # pyright: ignore


def weights(folder):
    from mim_bench.records.run_folder import read_config

    model = build_model(read_config(folder), 64)
    load_weights(folder, model)
    return model.state_dict()


def main(out):
    results = {}
    draws: dict[str, dict[str, str]] = {}
    restore = record_draws(draws)
    run(out, "whole", *WHOLE)
    restore()
    results["draws"] = draws
    run(out, "parts", *PARTS)
    for target in FOLLOWERS:
        run(out, target, *ONLY, target=target)
        run(out, f"{target} split", *ONLY, "runtime.shard=true", target=target)
    run(out, "sharded", *SHARDED)
    results["elements"] = sharded_elements(out)
    results["saved"] = interrupted(out, "again", 6, *ONLY)
    run(out, "again", *ONLY)
    for name in ("split", "split_to_one"):
        results[f"saved {name}"] = interrupted(out, name, 6, *ONLY, "runtime.shard=true")
    run(out, "split", *ONLY)  # written in pieces, goes on whole
    results["gradients"] = gradients(2)
    results["error"] = shared_error()
    path = Path(out) / f"rank-{distributed.rank()}.json"
    path.write_text(json.dumps(results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2:] == ["die"]:
        die(sys.argv[1])
    if sys.argv[2:] == ["wait"]:
        wait(sys.argv[1])
        sys.exit()
    with distributed.joined(timeout_minutes=1):
        main(sys.argv[1])
