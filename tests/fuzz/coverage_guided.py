"""The same readers under atheris, which looks for inputs that reach new code: `python
tests/fuzz/coverage_guided.py -atheris_runs=20000`.

Atheris is no dependency of this project: it has wheels for some systems only (`pip install atheris`). Any
    option of libFuzzer can be given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
with atheris.instrument_imports(include=["evaluation", "hub", "reward", "training", "yaml", "json", "csv"]):
    from evaluation.prompt_file import read_prompt_file
    from hub.files import read_file
    from hub.notes import read_notes, with_notes
    from hub.provenance import what_adapter_says
    from hub.results import read_results
    from hub.space.about import read_about
    from reward.concept import read_prompts, read_spec
    from reward.latents import read_shard

from fuzzing import put, refused_or_read, tried  # noqa: E402


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    readers = [
        lambda data: read_file(put(folder / "a.safetensors", data)),
        lambda data: what_adapter_says(put(folder / "pytorch_lora_weights.safetensors", data).parent),
        lambda data: read_about(put(folder / "pytorch_lora_weights.safetensors", data).parent),
        lambda data: read_shard(put(folder / "000000.safetensors", data), say=False),
        lambda data: read_results(put(folder / "results.json", data).parent),
        lambda data: read_spec(put(folder / "spec.yaml", data)),
        lambda data: read_prompts(put(folder / "prompts.txt", data)),
        lambda data: read_prompt_file(put(folder / "prompts.csv", data)),
        lambda data: read_prompt_file(put(folder / "prompts.jsonl", data)),
        lambda data: with_notes(data.decode(errors="replace"), read_notes(data.decode(errors="replace"))),
    ]

    def attempt(data: bytes) -> None:
        if data:
            (folder / "results.json").unlink(missing_ok=True)
            refused_or_read("coverage-guided", readers[data[0] % len(readers)], data[1:])
        if tried["coverage-guided"] % 1000 == 999:
            print(f"fuzzing: {tried['coverage-guided'] + 1} inputs tried", flush=True)

    atheris.Setup(sys.argv, attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
