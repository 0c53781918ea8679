"""Run the commands and Python blocks of the README and the docs: `make docs-check` (some minutes).

They run unchanged, in a folder with tiny stand-ins for the models and tables they name; training commands run for one epoch.
For those that cannot run like this, the test that covers them is printed. `python docs/check.py README.md docs/score.md` checks
these pages only; the guides use what the README trains.
"""

import csv
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template

from transformers import Qwen2Config, Qwen2Model

from xacle.configuration_xacle import XacleConfig
from xacle.core.provenance import TMU, TMU_LICENSE, weight_source
from xacle.demo.generated_corpus import write_corpus
from xacle.demo.tiny_models import (
    CAPTIONS,
    save_small_clap,
    save_tiny_scorer,
    tiny_config,
    tiny_processor,
    tiny_tokenizer,
)
from xacle.modeling_beats import BeatsModel
from xacle.processing_xacle import XacleFeatureExtractor

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")),
    "demo/README.md",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("metrics/*/README.md")),
    "space/README.md",
]
ELSEWHERE = {  # pattern of a command or block: why it is not run here
    r"^make ": "runs this script, or builds the environment it runs in",
    r"^source |^pip install": "the environment is there",
    r"^xacle convert": "needs released checkpoints; tests/test_conversion.py and tests/test_m2d_clap.py convert stand-ins",
    r"shards/\*|captions\.parquet|--dataset me/": "takes tar shards, Parquet or the Hub; tests/test_sources.py",
    r"^xacle demo": "tests/test_demo.py, and `make demo`",
    r"^xacle caption": "needs a sentence model of the Hub; tests/test_captions.py",
    r"^xacle app": "a server; tests/test_space.py",
    r"^xacle push (?!.*--dry-run)|--push-to-hub": "uploads; tests/test_publish.py pushes to a local Hub",
    r"^hf auth|HfApi": "needs an account on the Hub",
    r"from_pretrained\(\"me/|endpoints\.huggingface": "needs a published model; test_publish.py and test_handler.py",
    r"ray": "needs a cluster; tests/test_ray_data.py starts one of two actors",
    r"^torchrun|^accelerate": "needs several GPUs; the tests start two processes",
}
PRELUDE = "import numpy as np\nwaveform = 0.1 * np.random.default_rng(0).standard_normal(44100)\n"


def write_table(file: str, rows: list[dict]) -> None:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def prepare() -> None:
    """Write the models, tables and sounds that the docs name into the current folder."""
    write_corpus("xacle-data", seed=0, train=16, validation=8, test=8, captions=12)
    Path("wav").mkdir()
    tables = {}
    for split in ("train", "validation", "test", "captions"):
        name = "captions.csv" if split == "captions" else f"{split}_average.csv"
        with open(f"xacle-data/meta_data/{name}", newline="") as table:
            tables[split] = list(csv.DictReader(table))
        shutil.copytree(f"xacle-data/wav/{split}", "wav", dirs_exist_ok=True)
    write_table("ratings_train.csv", tables["train"])
    write_table("ratings_validation.csv", tables["validation"])
    write_table("ratings.csv", [row | {"model_id": f"system{n % 2}"} for n, row in enumerate(tables["test"])])
    pairs = [{name: row[name] for name in ("wav_file_name", "text")} for row in tables["test"]]
    write_table("pairs.csv", pairs)
    write_table("candidates.csv", [row | {"text": pairs[n // 4]["text"]} for n, row in enumerate(pairs)])
    chance = random.Random(0)
    for name in ("system_a", "system_b", "system_c", "other_scores", "test23"):
        write_table(f"{name}.csv", [{"wav_file_name": p["wav_file_name"], "pred_score": chance.uniform(0, 10)} for p in pairs])
    write_table("captions.csv", tables["captions"][:8])
    write_table("captions_validation.csv", tables["captions"][8:])
    for name in ("dog", "rain", "take1", "take2", "take3"):
        shutil.copy(f"wav/{pairs[0]['wav_file_name']}", f"{name}.wav")

    processor = tiny_processor()
    config = tiny_config(processor)
    save_tiny_scorer(Path("xacle-tmu"))
    released = XacleConfig.from_pretrained("xacle-tmu")
    released.weight_sources = [weight_source("scorer", TMU, TMU_LICENSE)]
    released.save_pretrained("xacle-tmu")
    BeatsModel(config.audio_config).save_pretrained("beats")
    XacleFeatureExtractor().save_pretrained("beats")
    captions = [row["text"] for rows in tables.values() for row in rows]
    save_small_clap(captions, Path("m2d-clap"), seed=0)
    tokenizer = tiny_tokenizer([*CAPTIONS.values(), *captions])
    settings = {**config.text_config.to_dict(), "vocab_size": len(tokenizer)}
    for size in ("0.5B", "1.5B"):  # a folder of that name is used before the Hub
        folder = Path(f"Qwen/Qwen2.5-{size}-Instruct")
        Qwen2Model(Qwen2Config(**settings)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def blocks(page: str) -> list[tuple[str, str]]:
    """`(language, code)` of a page's blocks and of the commands in its tables, in their order."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"```(bash|python)\n(.*?)```|^\|[^\n]*`xacle [^`\n]+ --[^\n]+$", text, flags=re.DOTALL | re.MULTILINE)
    parts = []
    for match in found:
        if match[1] is None:  # a row of a table
            parts += [("bash", command) for command in re.findall(r"`(xacle [^`]+ --[^`]+)`", match[0])]
        else:
            parts.append((match[1], match[2]))
    return parts


def commands(code: str, variables: dict[str, str]) -> list[str]:
    """The commands of a block, with its shell variables (and those of the page's earlier blocks) filled in."""
    lines = []
    for line in code.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assigned[1]] = Template(assigned[2]).substitute(variables)
        elif line:
            lines.append(Template(line).safe_substitute(variables))
    return lines


def shortened(command: str) -> str:
    """The command for tiny stand-ins on a CPU. Its output folder is emptied: another page may have trained into it."""
    if command.startswith("xacle train"):
        shutil.rmtree(re.search(r"--output-dir (\S+)", command)[1], ignore_errors=True)
        command += " --num-train-epochs 1 --per-device-train-batch-size 4 --use-cpu true --dataloader-num-workers 0"
    return command


def run(arguments: list[str], what: str) -> bool:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {what}", flush=True)
    if done.returncode:
        print("\n".join((done.stdout + done.stderr).splitlines()[-15:]), flush=True)
    return done.returncode == 0


def check(page: str) -> bool:
    good, variables = True, {}
    for language, code in blocks(page):
        for command in [code] if language == "python" else commands(code, variables):
            what = f"{page}: {command.strip().splitlines()[0]}"
            elsewhere = next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, command)), None)
            if elsewhere is not None:
                print(f"-      {what}\n       ({elsewhere})", flush=True)
            elif language == "python":
                good &= run([sys.executable, "-c", PRELUDE + code], what)
            else:
                good &= run(["bash", "-c", shortened(command)], what)
    return good


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.symlink(ROOT / "metrics", "metrics")
        prepare()
        results = [check(page) for page in sys.argv[1:] or PAGES]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
