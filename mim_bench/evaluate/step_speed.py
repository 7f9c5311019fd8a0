"""What a pre-training step costs on this device: time, memory, FLOPs. Nothing is trained.

MAE's Table 2 compares wall-clock times of pipeline shapes; here every step is timed on one batch of noise
of the run's shape, target included, reading of images left out.
"""

import statistics

from mim_bench.errors import UserError
from mim_bench.evaluate import speed
from mim_bench.evaluate.context import Answer, Subject
from mim_bench.train import distributed


def run(subject: Subject) -> Answer:
    """Medians over the timed steps.

    Raises:
        UserError: several processes, which would time one another.
    """
    if distributed.size() > 1:
        raise UserError(
            "evaluate.protocols=speed: one device is timed; start it as a single process"
        )
    config = subject.config
    stepper = speed.Stepper(config, subject.device)
    for _ in range(config.speed.warmup_steps):
        stepper.step()
    seconds = [speed.timed(stepper.step, subject.device) for _ in range(config.speed.steps)]
    alone = [speed.timed(stepper.target_only, subject.device) for _ in range(config.speed.steps)]
    step_s = statistics.median(seconds)
    peak_gb = speed.peak_gb(stepper.step, subject.device)
    figures = {
        "images_per_s": speed.part_size(config) / step_s,
        "step_s": step_s,
        "target_s": statistics.median(alone),
        "step_flops": float(stepper.flops),
    }
    return Answer({}, figures=figures if peak_gb is None else figures | {"peak_gb": peak_gb})
