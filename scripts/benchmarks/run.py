"""The benchmark's tables: parts of a restoration, images of several sizes, whole restorations by presets."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_loader import build_model as model_without_weights
from model_loader import load_model_from_config, load_yaml, resolve_device
from scripts.benchmarks import modes, report
from scripts.benchmarks.demo import demo_markdown, demo_table
from scripts.benchmarks.parts import MEASURED_OPERATOR, Setting, all_rows, network_rows
from scripts.benchmarks.restorations import restoration_rows
from scripts.benchmarks.sizes import size_markdown, size_table
from util.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A benchmark. The attributes are the arguments of `scripts/benchmark.py`."""

    config: Path
    checkpoint: Path | None
    side: int | None
    precision: Sequence[str] | None
    parts: Sequence[str] | None
    compile: bool
    device: str
    threads: int | None
    repeats: int
    out: Path
    restorations: Sequence[str] | None
    operator: str | None
    sizes: Sequence[int] | None
    batches: Sequence[int]
    demo: Sequence[str] | None
    limit: int
    tasks: Sequence[Path]
    settings: Sequence[str]

    def run(self) -> str:
        """Time what is asked for and write what came out; return it as text.

        Raises:
            UserError: it cannot be timed.
        """
        if self.operator and not self.restorations:
            raise UserError("--operator is for the presets of --restorations")
        if self.demo:
            return self._presets(self.demo)
        if self.settings and not self.restorations:
            raise UserError(f"{self.settings[0]!r}: settings are for the presets of --demo and --restorations")
        if self.threads:
            torch.set_num_threads(self.threads)
        device, config = resolve_device(self.device), load_yaml(self.config)
        architecture = model_without_weights(config)
        if architecture.image_channels != 3 or architecture.cond_stage_model is not None:
            raise UserError(f"{self.config}: only unconditional models of colour pictures are timed")
        if self.restorations:
            return self._restorations(self.restorations, config, device)
        if self.checkpoint is not None:
            state = load_model_from_config(config, self.checkpoint).state_dict()
        else:
            state = modes.build_state(config)
        return self._sizes(self.sizes, config, state, device) if self.sizes else self._parts(config, state, device)

    def _parts(self, config: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> str:
        setting = self._setting(config, state, device)
        rows = network_rows(setting, self.parts) if self.parts else all_rows(setting)
        return self._rows("benchmark", setting, rows)

    def _restorations(self, presets: Sequence[str], config: Mapping[str, Any], device: torch.device) -> str:
        setting = self._setting(config, {}, device)
        chosen = {mode: arithmetic for mode, arithmetic in setting.chosen.items() if not arithmetic.low_memory}
        operator = self.operator or MEASURED_OPERATOR
        rows = restoration_rows(replace(setting, chosen=chosen), presets, operator, self.settings)
        return self._rows("restorations", setting, rows)

    def _setting(self, config: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> Setting:
        chosen = modes.modes(device, self.precision, self.compile)
        side = self.side or model_without_weights(config).resolution
        return Setting(config, state, device, chosen, self.repeats, side)

    def _rows(self, name: str, setting: Setting, rows: Iterable[report.Row]) -> str:
        about = {"model": self.config.stem, "side": setting.side, "repeats": self.repeats}
        about, rows = {**about, **report.machine(setting.device)}, list(rows)
        return self._write(name, report.as_json(about, rows), report.as_markdown(about, rows))

    def _sizes(
        self, sides: Sequence[int], config: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device
    ) -> str:
        table = size_table(config, state, device, sides, self.batches, self.repeats)
        about = {"model": self.config.stem, "repeats": self.repeats, **report.machine(device)}
        content = json.dumps({**about, "rows": table}, indent=1) + "\n"
        return self._write("sizes", content, f"{report.sentence(about)}\n\n{size_markdown(table)}")

    def _presets(self, presets: Sequence[str]) -> str:
        words = ["--limit", str(self.limit), *self.settings]
        table = demo_table(presets, self.tasks, self.out / "runs", words)
        return self._write("demo", json.dumps(table, indent=1) + "\n", demo_markdown(table))

    def _write(self, name: str, content: str, text: str) -> str:
        """Write a table as JSON and as Markdown; return the latter."""
        report.write(self.out, f"{name}.json", content)
        report.write(self.out, f"{name}.md", text)
        return text
