"""A target for the tests here: raw pixels, slowly, or with one process that dies."""

import os
import time

from mim_bench.errors import UserError
from mim_bench.targets.pixel import PixelTarget


class SlowTarget(PixelTarget):
    """Takes its time in a job and none elsewhere, with the same values."""

    class Params(PixelTarget.Params):
        pause_s: float = 0.1
        """Before each batch."""
        dies_on_rank: int = -1
        """This process meets an error in its third batch."""

    num_batches = 0

    def forward(self, images):
        self.num_batches += 1
        if "SLURM_JOB_ID" in os.environ:
            time.sleep(self.params.pause_s)
            if self.num_batches == 3 and os.environ["SLURM_PROCID"] == str(
                self.params.dies_on_rank
            ):
                raise UserError("image 7 cannot be read")
        return super().forward(images)
