"""The documented flags of the programs that the scripts of launch/ call."""

_TPU_HOST = {"--batch-size", "--node", "--worker", "--zone", "--project", "--internal-ip"}
_XPK = {"--workload", "--cluster", "--zone", "--project"}

FLAGS: dict[str, set[str]] = {
    # gcloud's reference, cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources; the
    # same as `gcloud … --help` of Google Cloud SDK 528.0.0
    "gcloud compute tpus queued-resources create": {
        *("--zone", "--project", "--runtime-version", "--accelerator-type", "--topology", "--type"),
        *("--node-id", "--node-count", "--node-prefix", "--async", "--spot", "--reserved"),
        *("--guaranteed", "--network", "--subnetwork", "--labels", "--metadata", "--tags"),
        *("--service-account", "--valid-until-duration", "--valid-after-duration"),
    },
    "gcloud compute tpus queued-resources describe": {"--zone", "--project", "--format"},
    "gcloud compute tpus queued-resources ssh": {*_TPU_HOST, "--command", "--ssh-flag"},
    "gcloud compute tpus queued-resources scp": {*_TPU_HOST, "--recurse", "--scp-flag"},
    "gcloud compute tpus queued-resources delete": {
        *("--zone", "--project", "--force", "--async", "--quiet")
    },
    # cloud.google.com/sdk/gcloud/reference/storage/cp
    "gcloud storage cp": {"--recursive", "--no-clobber"},
    # src/xpk/parser of XPK 1.16.0, github.com/AI-Hypercomputer/xpk
    "xpk workload create": {
        *(*_XPK, "--tpu-type", "--num-slices", "--docker-image", "--command", "--max-restarts"),
        *("--termination-grace-period-seconds", "--priority", "--spot", "--env"),
    },
    "xpk workload delete": {*_XPK, "--force"},
    # slurm.schedmd.com/srun.html, scontrol.html
    "srun": {"--kill-on-bad-exit", "--ntasks", "--nodes", "--export"},
    "scontrol requeue": set(),
    "docker push": set(),
    "docker build": {"--tag", "--file"},
    "git archive": {"--format", "--output"},
}

# slurm.schedmd.com/sbatch.html
SBATCH = {
    *("--job-name", "--nodes", "--gpus-per-node", "--ntasks-per-node", "--cpus-per-task", "--mem"),
    *("--time", "--signal", "--requeue", "--open-mode", "--output", "--partition", "--account"),
}

# sky/utils/schemas.py of SkyPilot 0.14.1, and docs.skypilot.co/en/latest/reference/yaml-spec.html
SKY = {
    "": {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts"}
    | {"setup", "run", "config"},
    "resources": {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
    | {"disk_size", "labels", "any_of", "ordered", "cpus", "memory", "image_id"},
    "accelerator_args": {"runtime_version", "tpu_name", "tpu_vm", "gcp_queued_resource"},
    "job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
}

# cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX"
IMAGES = {
    "v4-8": "tpu-ubuntu2204-base",
    "v5litepod-8": "v2-alpha-tpuv5-lite",
    "v5p-8": "v2-alpha-tpuv5",
    "v6e-8": "v2-alpha-tpuv6e",
}
