"""What runs first on a GPU runs here on the CPU, so that it does not fail there for a renamed function."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("gpu_day.py")


def test_gpu_day__finds_nothing_wrong_on_a_cpu(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--budget", "400"]
    environment = {**os.environ, "OUT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("0 to look at: []"), done.stderr
    found = json.loads((tmp_path / "gpu_day.json").read_text())
    assert found["golden MAE loss, float32"].startswith("1.970172 (want 1.970172)")
    assert found["resumed run, 17 tokens, compile off"] == "ok" and len(found) >= 25
