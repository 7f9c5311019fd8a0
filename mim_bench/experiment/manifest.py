"""The manifest of a run: what began it, where and with what, written before its first step."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mim_bench.config.run import RunConfig
from mim_bench.data.run_data import Data
from mim_bench.errors import UserError
from mim_bench.files import write_text
from mim_bench.records import provenance
from mim_bench.records.run_folder import read_manifest
from mim_bench.train import backend, environment, pretrain
from mim_bench.train.backend import is_compiled

_logger = logging.getLogger(__name__)


def write_manifest(
    folder: Path, config: RunConfig, data: Data, device: torch.device, command: str
) -> None:
    """Written before the first step: what is needed to say later where a number came from."""
    path = folder / "manifest.json"
    before = read_manifest(folder) if path.is_file() else {}
    if before:
        _check_continued(before, data, device, folder)
    manifest = {
        "run_id": config.run_id,
        "run_hash": config.hash,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": provenance.code().model_dump(),
        "versions": provenance.versions(),
        "device": environment.device_facts(device).model_dump(),
        "precision": backend.precision(device, config.runtime),
        "tf32": config.runtime.tf32,
        "compiled": is_compiled(device, config.runtime),
        "lr": config.pretrain.lr,
        "data": data.facts.model_dump(),
        "first_batches": pretrain.first_batches_hash(config, data),
        "artefacts": before.get("artefacts", {}),
    }
    write_text(path, json.dumps(manifest, indent=1) + "\n")


def _check_continued(
    manifest: dict[str, Any], data: Data, device: torch.device, folder: Path
) -> None:
    """A run goes on with the same images; other code or another device is reported."""
    if manifest["data"]["fingerprint"] != data.facts.fingerprint:
        raise UserError(
            f"{folder} began on other images: '{data.facts.source}' has changed since; "
            "use --force to start again, or another --out"
        )
    before, current = manifest["code"]["commit"], provenance.code().commit
    if before != current:
        _logger.warning("%s began at commit %s and goes on at %s", folder, before, current)
    if manifest["device"]["kind"] != device.type:
        device_kind = manifest["device"]["kind"]
        _logger.warning(
            "%s began on %s and goes on on %s: not bit-equal", folder, device_kind, device.type
        )
