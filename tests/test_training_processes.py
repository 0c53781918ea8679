"""Training in several processes, and training that is killed."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings
from xacle.train.arguments import CONFIGS

STAGES = {
    "stage1_captioning": (stage1_captioning, "train_captions"),
    "stage2_pseudo_labels": (stage2_pseudo_labels, "pseudo_labels"),
    "stage3_ratings": (stage3_ratings, "ratings"),
}


def logged(folder, name="loss"):
    history = json.loads((folder / "log_history.json").read_text())
    return [entry[name] for entry in history if name in entry]


def weights(folder):
    return load_file(folder / "model.safetensors")


def validation_of(stage, task):
    return task.folder / ("validation_captions.csv" if stage == "stage1_captioning" else "validation.csv")


# --- Several processes -----------------------------------------------------------------------------------------------------

SAME_EVERYWHERE = {  # no dropout and no masks, which every process draws for itself
    "model_config": '{"projector_dropout": 0.0}',
    "max_steps": 4,
    "learning_rate": 1e-3,
    "optim": "adamw_torch",
    "adam_epsilon": 1e-4,  # else Adam makes whole steps of gradients that are zero up to rounding (ListNet ignores a constant)
    "weight_decay": 0.1,
}
# Two workers that run one stage after another, to start Python only once.
WORKER = """
import importlib, json, sys
for module, arguments in json.loads(sys.argv[1]):
    importlib.import_module(f"xacle.train.{module}").main(arguments)
"""


@pytest.fixture(scope="module")
def two_processes(task, tmp_path_factory):
    """All stages with one process and batches of 16, then with two and batches of 8, stage 3 also with FSDP: the folders."""
    root = tmp_path_factory.mktemp("processes")
    jobs = []
    for stage, (module, table) in STAGES.items():
        options = {**SAME_EVERYWHERE, "validation_file": validation_of(stage, task)}
        if stage == "stage3_ratings":
            options |= {"freq_mask_width": 0, "time_mask_width": 0}
        alone = task.arguments(root / f"{stage}-1", table, per_device_train_batch_size=16, **options)
        module.main(alone)
        together = {"per_device_train_batch_size": 8, "feature_cache": root / "cache", "ddp_backend": "gloo", **options}
        jobs.append((stage, task.arguments(root / f"{stage}-2", table, **together)))
    worker = root / "worker.py"
    worker.write_text(WORKER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run([*torchrun, str(worker), json.dumps(jobs)])
    # With FSDP, as the packaged config asks for it, but on two CPU processes and in float32.
    stage, arguments = jobs[-1]
    arguments[arguments.index("--output_dir") + 1] = str(root / f"{stage}-fsdp")
    config = yaml.safe_load((CONFIGS / "accelerate/fsdp.yaml").read_text())
    config.update(num_processes=2, use_cpu=True, mixed_precision="no", main_process_port=0)
    (root / "fsdp.yaml").write_text(yaml.safe_dump(config))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(root / "fsdp.yaml")]
    run([*accelerate, "-m", f"xacle.train.{stage}", *arguments])
    return root


def test_a_trained_encoder_skips_no_layers_which_would_stop_other_processes(task, tmp_path):
    unfrozen = {"freeze_audio_encoder": "false", "freq_mask_width": 0, "time_mask_width": 0, "ddp_backend": "gloo"}
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    jobs = [("stage3_ratings", task.arguments(tmp_path / "run", per_device_train_batch_size=4, **unfrozen))]
    run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker), json.dumps(jobs)])
    assert len(logged(tmp_path / "run")) == 8


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.parametrize(
    ("one", "two"),
    [(f"{stage}-1", f"{stage}-2") for stage in STAGES] + [("stage3_ratings-1", "stage3_ratings-fsdp")],
)
def test_two_processes_train_like_one_with_the_whole_batch(one, two, two_processes):
    assert logged(two_processes / two) == pytest.approx(logged(two_processes / one), abs=1e-5)
    norms = [logged(two_processes / run, "grad_norm") for run in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    expected, found = weights(two_processes / one), weights(two_processes / two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
    records = [json.loads((two_processes / run / "run.json").read_text()) for run in (one, two)]
    assert [record["world_size"] for record in records] == [1, 2]
    name = "eval_loss" if one.startswith("stage1") else "eval_SRCC"
    assert records[0]["validation_metrics"][name] == pytest.approx(records[1]["validation_metrics"][name], abs=1e-4)


# --- kill -9 ---------------------------------------------------------------------------------------------------------------

# Runs each job in a child that kills itself in the middle of an epoch, between two checkpoints.
VICTIMS = """
import importlib, json, os, signal, sys
import torch
from xacle.train import stage1_captioning, stage2_pseudo_labels, stage3_ratings, trainer
for module, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        step = trainer.XacleTrainer.training_step
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args, **kwargs)
        trainer.XacleTrainer.training_step = training_step
        importlib.import_module(f"xacle.train.{module}").main(arguments)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""
RUNS = [(stage, cache) for stage in STAGES for cache in ("cached", "uncached")]


@pytest.fixture(scope="module")
def killed(task, tmp_path_factory):
    """Every stage, with and without cache, killed in its seventh step; steps an epoch: 4 (captioning: 2). The arguments."""
    root = tmp_path_factory.mktemp("killed")
    arguments = {}
    for stage, cache in RUNS:
        options = {
            "validation_file": validation_of(stage, task),
            "num_train_epochs": 5 if stage == "stage1_captioning" else 3,
            "feature_cache": root / "cache" if cache == "cached" else "none",
        }
        if cache == "cached":  # the others save where the packaged configs do, at the end of epochs
            options |= {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
        if (stage, cache) == ("stage3_ratings", "cached"):
            options |= {"lora_r": 2, "dataloader_num_workers": 2}
        arguments[stage, cache] = task.arguments(root / f"{stage}-{cache}", STAGES[stage][1], **options)
    jobs = [(stage, given) for (stage, _), given in arguments.items()]
    result = subprocess.run([sys.executable, "-c", VICTIMS, json.dumps(jobs)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return root, arguments


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("stage", "cache"), RUNS)
def test_a_killed_run_goes_on_to_bit_identical_weights(stage, cache, killed, one_thread, tmp_path):
    root, arguments = killed
    run = root / f"{stage}-{cache}"
    last = "checkpoint-6" if cache == "cached" or stage == "stage1_captioning" else "checkpoint-4"
    assert not (run / "model.safetensors").exists() and (run / last).is_dir()
    # As if it had been killed while it wrote a checkpoint: this one must not be taken.
    torn = run / "checkpoint-7"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"torn")
    STAGES[stage][0].main([*arguments[stage, cache], "--resume_from_checkpoint", "last"])

    whole = list(arguments[stage, cache])
    whole[whole.index("--output_dir") + 1] = str(tmp_path / "whole")
    STAGES[stage][0].main(whole)
    resumed, uninterrupted = weights(run), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())
    assert logged(run) == logged(tmp_path / "whole")
    assert json.loads((run / "run.json").read_text())["resumed_from"].endswith(last)


def test_a_run_killed_before_its_first_checkpoint_starts_again(task, tmp_path):
    from xacle.train.stage3_ratings import main

    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    main([*task.arguments(run, max_steps=1), "--resume_from_checkpoint", "last"])
    assert (run / "model.safetensors").exists()
