"""Whether the commits behind a benchmark's records train alike.

    python tools/replay.py targets --preset small --data parquet:PATH

Each (target, commit) of the records trains a few steps from a `git worktree` of that commit, and so does one commit for
all: HEAD at the first call or with --again, later the one of the file, which new pairs are compared with. With this
environment's packages, one thread, the records' precision. Equal weights, bit for bit, say that the rows are those of
one training code. `results/<benchmark>/<preset>/replay.json` holds the outcome, which the note on commits reads.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from mim_bench.config.resolve import load_config
from mim_bench.files import write_text
from mim_bench.records import store
from mim_bench.records.replay import FILE, trained_by

ROOT = Path(__file__).resolve().parents[1]
CUT = ("data.limit_images=2560", "pretrain.epochs=2", "pretrain.warmup_epochs=1")
FEW_WORDS = "target.vocab_size=16"
"""A tokenizer that so few images fit uses no more."""


def main() -> None:
    """Replays, prints a line each, and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("benchmark")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--again", action="store_true", help="replay every pair anew, against HEAD")
    options = parser.parse_args()
    home = store.home(options.benchmark, options.preset, options.results)
    wanted = trained_by(record for _, record in store.read_folder(home / "records"))
    base, known = recorded(home / FILE) if not options.again else (git("rev-parse", "HEAD"), {})
    rows = []
    with tempfile.TemporaryDirectory() as kept:
        trees: dict[str, Path] = {}
        for target, commit, precision in sorted(wanted):
            for one in (commit, base):
                key = target, one, precision
                if key not in known:
                    if one not in trees:
                        trees[one] = worktree(Path(kept), one)
                    known[key] = replay(trees[one], target, precision, options)
            equal = known[target, commit, precision] == known[target, base, precision]
            rows.append({"target": target, "commit": commit, "precision": precision, "equal": equal,
                         "weights_sha256": known[target, commit, precision]})  # fmt: skip
            print(f"{target} at {commit[:12]}: {'equal' if equal else 'NOT equal'}", flush=True)
        for tree in trees.values():
            git("worktree", "remove", "--force", str(tree))
    content = {
        "commit": base,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": list(CUT),
        "rows": rows,
    }
    write_text(home / FILE, json.dumps(content, indent=1) + "\n")
    print(home / FILE)


def recorded(file: Path) -> tuple[str, dict[tuple[str, str, str], str]]:
    """The commit that all are compared with, and (target, commit, precision) -> weights that are known already."""
    if not file.is_file():
        return git("rev-parse", "HEAD"), {}
    content = json.loads(file.read_text())
    base, known = content["commit"], {}
    for row in content["rows"]:
        known[row["target"], row["commit"], row["precision"]] = row["weights_sha256"]
        if row["equal"]:
            known[row["target"], base, row["precision"]] = row["weights_sha256"]
    return base, known


def git(*words: str) -> str:
    """Output of git in the checkout."""
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def worktree(folder: Path, commit: str) -> Path:
    """A checkout of a commit."""
    git("worktree", "add", "--detach", str(folder / commit), commit)
    return folder / commit


def replay(tree: Path, target: str, precision: str, options: argparse.Namespace) -> str:
    """sha256 of the weights that a checkout trains in a few steps."""
    words = [f"runtime.precision={precision}", *CUT]
    if "vocab_size" in load_config(target, options.preset).target.params:
        words.append(FEW_WORDS)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mim_bench", "run", "--target", target, "--preset", options.preset,
                   "--data", options.data, "--protocols", "knn", "--out", out, *words]  # fmt: skip
        done = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{target} at {tree.name[:12]}: {done.stderr.strip().splitlines()[-1]}")
        weights = next(Path(out).glob("*/model.safetensors"))
        return hashlib.sha256(weights.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
