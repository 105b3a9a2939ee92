"""The scripts for clouds and clusters: what they would call, and what arrives at the program."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.launch.documented import FLAGS, IMAGES, SBATCH, SKY
from tests.launch.scripts import SCRIPTS, bash, run_line, stand_in
from tests.running import ROOT

PROGRAM = ("--config=configs/hha.py:objective=dpo", "--workdir=gs://bucket/my run")
ANYWHERE = ("--zone=us-east5-b", "--project=mine", "--dry-run")
CALLS = {
    "create": ("tpu_vm.sh", "create", "tpu", "--type=v6e-8", *ANYWHERE),
    "create slices": ("tpu_vm.sh", "create", "tpu", "--type=v5p-8", "--slices=2", *ANYWHERE),
    "create, on demand": (
        *("tpu_vm.sh", "create", "tpu", "--type=v4-8", "--on-demand"),
        *("--image=other", "--valid-until-duration=6h", *ANYWHERE),
    ),
    "install": ("tpu_vm.sh", "install", "tpu", *ANYWHERE),
    "run": ("tpu_vm.sh", "run", "tpu", *PROGRAM, *ANYWHERE),
    "log": ("tpu_vm.sh", "log", "tpu", *ANYWHERE),
    "stop": ("tpu_vm.sh", "stop", "tpu", *ANYWHERE),
    "fetch": ("tpu_vm.sh", "fetch", "tpu", "gs://bucket/hha", "here", *ANYWHERE),
    "fetch from the host": ("tpu_vm.sh", "fetch", "tpu", "runs/hha", "here", *ANYWHERE),
    "delete": ("tpu_vm.sh", "delete", "tpu", *ANYWHERE),
    "gke image": ("gke/xpk.sh", "image", "--image=a/b:1", "--dry-run"),
    "gke run": (
        *("gke/xpk.sh", "run", "hha", "--image=a/b:1", "--cluster=c", "--type=v6e-256"),
        *(*PROGRAM, *ANYWHERE),
    ),
    "gke delete": ("gke/xpk.sh", "delete", "hha", "--cluster=c", *ANYWHERE),
    "slurm": ("slurm.sbatch", "--dry-run", *PROGRAM),
}


def printed(call: str) -> list[list[str]]:
    """The commands that a script prints with --dry-run, in words."""
    result = bash(*CALLS[call])
    assert (result.returncode, result.stderr) == (0, "")
    return [shlex.split(line) for line in result.stdout.splitlines()]


def value(words: list[str], flag: str) -> str:
    (found,) = [word.split("=", 1)[1] for word in words if word.startswith(flag + "=")]
    return found


def undocumented(words: list[str]) -> set[str]:
    """The flags of a command that its program does not document."""
    if words[:2] == ["bash", "-c"]:  # programs side by side, in a pipe
        parts = words[2].split(" | ") if words[2].startswith("git ") else [words[2]]
        return set().union(*(undocumented(shlex.split(part)) for part in parts))
    command = max(
        (name for name in FLAGS if f"{shlex.join(words)} ".startswith(f"{name} ")), key=len
    )
    end = words.index("bash") if command == "srun" else len(words)
    given = {word.split("=", 1)[0] for word in words[:end] if word.startswith("--")}
    return given - FLAGS[command]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    result = run_line([checker, "--external-sources", str(script.relative_to(ROOT))], ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("call", CALLS)
def test_a_dry_run_prints_documented_flags_and_calls_nothing(call, tmp_path):
    for name in ("gcloud", "git", "docker", "xpk", "srun", "scontrol", "sbatch"):
        stand_in(tmp_path, name, f"touch {tmp_path}/called")
    result = run_line(
        ["bash", f"launch/{CALLS[call][0]}", *CALLS[call][1:]], ROOT, stand_ins=tmp_path
    )
    assert result.returncode == 0 and not (tmp_path / "called").exists()
    lines = printed(call)
    assert lines and {flag for words in lines for flag in undocumented(words)} == set()


def test_a_flag_that_is_not_documented_is_found():
    assert undocumented(["xpk", "workload", "delete", "--now"]) == {"--now"}
    with pytest.raises(ValueError):
        undocumented(["gcloud", "compute", "tpus", "reboot"])


@pytest.mark.parametrize("kind", IMAGES)
def test_each_generation_has_its_image(kind):
    result = bash("tpu_vm.sh", "create", "tpu", f"--type={kind}", "--zone=z", "--dry-run")
    words = shlex.split(result.stdout.splitlines()[0])
    assert value(words, "--runtime-version") == IMAGES[kind] and "--spot" in words


def test_slices_are_nodes_of_one_queued_resource():
    one, two = printed("create")[0], printed("create slices")[0]
    assert value(one, "--node-id") == "tpu"
    assert (value(two, "--node-count"), value(two, "--node-prefix")) == ("2", "tpu")
    assert not any(word.startswith("--node-id") for word in two)


def test_on_demand_is_not_spot_and_an_image_can_be_named():
    words = printed("create, on demand")[0]
    assert "--spot" not in words and value(words, "--runtime-version") == "other"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tpu_vm.sh", "start", "tpu"), "not 'start'"),
        (("tpu_vm.sh", "delete"), "needs a NAME"),
        (("tpu_vm.sh", "delete", "tpu"), "--zone= is missing"),
        (("tpu_vm.sh", "delete", "tpu", "--zone=z", "--al"), "unknown argument --al"),
        (("tpu_vm.sh", "create", "tpu", "--zone=z"), "create needs --type="),
        (("tpu_vm.sh", "create", "tpu", "--zone=z", "--type=v9-8"), "no image is known"),
        (("tpu_vm.sh", "run", "tpu", "--zone=z"), "run needs the program's arguments"),
        (("tpu_vm.sh", "fetch", "tpu", "--zone=z", "a"), "fetch needs FROM and TO"),
        (("gke/xpk.sh", "image"), "image needs --image="),
        (("gke/xpk.sh", "run", "--image=i", "--type=t", "--config=c"), "run needs a NAME"),
        (("gke/xpk.sh", "run", "n", "--image=i", "--type=t", "--config=c"), "needs --cluster="),
        (("slurm.sbatch",), "arguments are missing"),
    ],
)
def test_a_bad_argument_is_one_line_and_exit_code_2(arguments, said):
    result = bash(*arguments, "--dry-run") if arguments[1:] else bash(*arguments)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: ") and said in line


@pytest.fixture
def host(tmp_path):
    """A machine with the project's folder, whose python prints its arguments, one a line."""
    folder = tmp_path / "alol_jax"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").write_text(f"PATH={folder}/.venv/bin:$PATH\n", encoding="utf-8")
    shutil.copytree(ROOT / "launch", folder / "launch")
    stand_in(folder / ".venv/bin", "python", """printf '%s\\n' "$LIBTPU_INIT_ARGS" "$@" """)
    return folder


def arrived(text: str) -> tuple[str, ...]:
    """The arguments of the program, after its flags of the compiler and its name."""
    flags, *words = text.splitlines()
    assert flags.startswith("--xla_") and words[:2] == ["-m", "alol_jax.main"]
    return tuple(words[2:])


def test_the_arguments_arrive_on_a_tpu_vm_as_they_were_given(host):
    start, follow = (value(words, "--command") for words in printed("run"))
    assert run_line(["bash", "-c", start], host.parent, TPU_ACCELERATOR_TYPE="v6e-8").stdout == ""
    shown = run_line(["bash", "-c", follow], host.parent)
    assert arrived(shown.stdout) == PROGRAM


def test_a_second_run_on_a_host_is_refused_and_the_first_is_stopped_by_its_number(host):
    stand_in(host / ".venv/bin", "python", "exec sleep 50")
    start = value(printed("run")[0], "--command")
    assert run_line(["bash", "-c", start], host.parent).returncode == 0
    again = run_line(["bash", "-c", start], host.parent)
    assert again.returncode == 2 and again.stderr == "error: a run is going on here\n"
    stop = value(printed("stop")[0], "--command")
    assert run_line(["bash", "-c", stop], host.parent).returncode == 0
    follow = value(printed("log")[0], "--command")  # ends with the run
    assert run_line(["bash", "-c", follow], host.parent).returncode == 0


@pytest.mark.parametrize("call", ["gke run", "slurm"])
def test_the_arguments_arrive_in_a_container_and_under_slurm(call, host):
    words = printed(call)[0]
    line = value(words, "--command") if call == "gke run" else words[words.index("bash") + 2]
    found = run_line(
        ["bash", "-c", line], host, stand_ins=host / ".venv/bin", TPU_ACCELERATOR_TYPE="v6e-8"
    )
    assert arrived(found.stdout) == PROGRAM


def test_what_is_installed_is_what_is_committed(host):
    archive, copy, unpack = printed("install")
    assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
    assert value(archive, "--output") in copy
    line = value(unpack, "--command")
    (host / "launch/install.sh").write_text('echo "installs $1"\n', encoding="utf-8")
    run_line(["tar", "-czf", "../alol_jax.tar.gz", "."], host)
    shutil.rmtree(host)
    result = run_line(["bash", "-c", line], host.parent)
    assert result.stdout == "installs requirements.txt\n"


# Slurm


def test_each_job_has_its_own_port_unless_one_is_set(host):
    stand_in(host / ".venv/bin", "python", 'echo "$JAX_COORDINATOR_PORT"')
    words = printed("slurm")[0]
    line = ["bash", "-c", words[words.index("bash") + 2]]
    found = [
        run_line(line, host, stand_ins=host / ".venv/bin", **variables).stdout.strip()
        for variables in (
            {"SLURM_JOB_ID": "1234567"},
            {"SLURM_JOB_ID": "1234568"},
            {"SLURM_JOB_ID": "7", "JAX_COORDINATOR_PORT": "8476"},
        )
    ]
    assert found == ["24567", "24568", "8476"]


def test_the_directives_of_slurm_are_documented_ones():
    text = (ROOT / "launch/slurm.sbatch").read_text(encoding="utf-8")
    given = dict(re.findall(r"^#SBATCH (--[\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert given.keys() <= SBATCH and len(given) == text.count("#SBATCH")
    assert given["--gpus-per-node"] == given["--ntasks-per-node"]
    assert given["--signal"] == "TERM@120" and "--requeue" in given


@pytest.fixture
def cluster(host):
    """The project's folder on a cluster, where Slurm's programs write down how they are called."""
    (host / "launch/install.sh").write_text("", encoding="utf-8")
    programs = host.parent / "slurm"
    stand_in(programs, "srun", f"echo srun >>{host}/calls; exit $CODE")
    stand_in(programs, "squeue", "echo $STATE")
    stand_in(programs, "scontrol", f'echo "scontrol $*" >>{host}/calls')

    def submit(**environment):
        job = {"SLURM_SUBMIT_DIR": str(host), "SLURM_JOB_ID": "7"} | environment
        words = ["bash", str(host / "launch/slurm.sbatch"), *PROGRAM]
        result = run_line(words, host.parent, stand_ins=programs, **job)
        return result.returncode, (host / "calls").read_text(encoding="utf-8").splitlines()

    return submit


@pytest.mark.parametrize(
    ("code", "state", "queued"),
    [("143", "RUNNING", True), ("143", "COMPLETING", False), ("0", "RUNNING", False)],
)
def test_a_job_is_queued_again_if_it_saved_and_was_not_cancelled(cluster, code, state, queued):
    returned, calls = cluster(CODE=code, STATE=state)
    assert str(returned) == code
    assert calls == ["srun", *["scontrol requeue 7"] * queued]


def test_a_job_from_another_folder_is_refused(tmp_path):
    words = ["bash", str(ROOT / "launch/slurm.sbatch"), *PROGRAM]
    result = run_line(words, ROOT, SLURM_SUBMIT_DIR=str(tmp_path))
    assert result.returncode == 2 and "is submitted from the project's folder" in result.stderr


# SkyPilot


def test_the_fields_of_skypilot_are_documented_ones():
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text(encoding="utf-8"))
    resources = task["resources"]
    assert task.keys() <= SKY[""] and resources.keys() <= SKY["resources"]
    for section in ("accelerator_args", "job_recovery"):
        assert resources[section].keys() <= SKY[section]
    kind = resources["accelerators"].removeprefix("tpu-")
    assert resources["accelerator_args"]["runtime_version"] == IMAGES[kind]
    assert resources["use_spot"] is True
    assert all(image in (ROOT / "launch/sky.yaml").read_text() for image in IMAGES.values())


def test_skypilot_runs_the_program_with_the_given_config_and_workdir(host):
    task = yaml.safe_load((ROOT / "launch/sky.yaml").read_text(encoding="utf-8"))
    given = {
        "CONFIG": "configs/hha.py",
        "WORKDIR": "gs://bucket/my run",
        "ARGUMENTS": "--redo --x=1",
    }
    result = run_line(["bash", "-c", task["run"]], host, TPU_ACCELERATOR_TYPE="v6e-8", **given)
    assert arrived(result.stdout) == (
        *("--config=configs/hha.py", "--workdir=gs://bucket/my run", "--redo", "--x=1"),
    )
    assert {name for name, default in task["envs"].items() if default is None} == {
        *("CONFIG", "WORKDIR")
    }


# credentials

CREDENTIALS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.|gh[pousr]_\w{30,}"
    r"|-----BEGIN|private_key|(?i:token|password|secret|api_?key)[\"']?\s*[:=]\s*[\"']?[\w-]{8,}"
)


def test_no_file_of_launch_holds_a_credential():
    for path in (ROOT / "launch").rglob("*"):
        if path.is_file():
            assert CREDENTIALS.search(path.read_text(encoding="utf-8")) is None, path


@pytest.mark.parametrize(
    "text",
    ["HF_TOKEN=hf_" + "a" * 34, "password: correct-horse", '"private_key": "…"', "AKIA" + "A" * 16],
)
def test_a_credential_is_found(text):
    assert CREDENTIALS.search(text)


def test_every_mark_is_selected_once_what_it_needs_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    marks = [line.partition(":")[0] for line in project["tool"]["pytest"]["ini_options"]["markers"]]
    *_, last = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert sorted(re.search('-m "([^"]*)"', last)[1].split(" or ")) == sorted(marks)
