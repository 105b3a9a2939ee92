"""`launch/install.sh` on machines whose Python serves, is too old, or lacks venv; and no Python."""

import shutil
import subprocess
import sys

import pytest

from tests.running import ROOT

TOOLS = ("bash", "basename", "cat", "chmod", "cksum", "mkdir", "rm")
NEEDED = ("alol_jax/__init__.py", "alol_jax/errors.py", "alol_jax/devices", "launch")
ENVIRONMENT = f"""mkdir -p .venv/bin
echo 'PATH="$PWD/.venv/bin:$PATH"' >.venv/bin/activate
cat >.venv/bin/python <<'END'
#!/bin/bash
case "$*" in
  "-m pip "*) echo "pip ${{*:3}}" >>installed ;;
  *) exec {sys.executable} "$@" ;;
esac
END
chmod +x .venv/bin/python
"""
UV = f"""#!/bin/bash
echo "uv $*" >>made
{ENVIRONMENT}"""
WITHOUT = {  # what is different about a Python, for the question whether it serves
    "nothing": "",
    "venv": "sys.modules['ensurepip'] = None",
    "age": "sys.version_info = (3, 10, 12)",
}


def python(lacks, *, pip=True):
    """A stand-in for Python; its pip installs nothing but `UV`."""
    return f"""#!/bin/bash
case "$*" in
  "-c "*) exec {sys.executable} -c "import sys
{WITHOUT[lacks]}
$2" ;;
  "-m venv .venv") echo "$*" >>made
{ENVIRONMENT} ;;
  "-m pip --version") {"true" if pip else "exit 1"} ;;
  "-m pip install "*"--target .uv uv>="*) mkdir -p .uv/bin
cat >.uv/bin/uv <<'UV'
{UV}
UV
chmod +x .uv/bin/uv ;;
  *) exit 1 ;;
esac
"""


def nvidia_smi(driver):
    """A stand-in for nvidia-smi with one GPU of compute capability 9.0."""
    return f'#!/bin/bash\ncase "$1" in *driver*) echo {driver} ;; *) echo 9.0 ;; esac\n'


@pytest.fixture
def machine(tmp_path):
    """A project folder, and a function that installs with these programs on the path alone."""
    project, path = tmp_path / "project", tmp_path / "bin"
    path.mkdir()
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, project / name)
    (project / "requirements.txt").write_text("numpy\n")
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool))

    def install(variables=None, **programs):
        for name, text in programs.items():
            (path / name.replace("_", "-")).write_text(text)
            (path / name.replace("_", "-")).chmod(0o755)
        return subprocess.run(
            ["bash", "-c", "source launch/install.sh requirements.txt; command -v python"],
            cwd=project,
            env={"PATH": str(path)} | (variables or {}),
            capture_output=True,
            text=True,
        )

    install.project = project
    return install


def installed(project):
    return (project / "installed").read_text()


def test_a_python_that_serves_makes_the_environment_and_uv_is_not_asked(machine):
    done = machine(python3=python("nothing"), uv=UV)
    assert done.returncode == 0, done.stderr
    assert (machine.project / "made").read_text() == "-m venv .venv\n"
    assert done.stdout.splitlines()[-1] == f"{machine.project}/.venv/bin/python"
    assert "-r requirements.txt jax\n" in installed(machine.project)


@pytest.mark.parametrize("lacks", ["age", "venv"])
def test_where_python_does_not_serve_uv_is_installed_by_pip_and_brings_one(lacks, machine):
    done = machine(python3=python(lacks))
    assert done.returncode == 0, done.stderr
    assert (machine.project / "made").read_text() == "uv venv --quiet --python 3.12 --seed .venv\n"
    assert "no Python ≥ 3.11 with the venv module found: uv brings Python 3.12" in done.stdout
    assert "-r requirements.txt jax\n" in installed(machine.project)
    again = machine(python3=python(lacks))
    assert again.returncode == 0 and "installing" not in again.stdout
    assert len((machine.project / "made").read_text().splitlines()) == 1


def test_a_uv_on_the_path_is_taken_without_any_python(machine):
    done = machine(uv=UV)
    assert done.returncode == 0, done.stderr
    assert "uv venv" in (machine.project / "made").read_text()
    assert not (machine.project / ".uv").exists()


@pytest.mark.parametrize("programs", [{}, {"python3": python("age", pip=False)}])
def test_without_python_uv_and_pip_one_line_says_what_to_install(programs, machine):
    done = machine(**programs)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "no uv, and no pip that installs uv" in done.stderr and "python3-pip" in done.stderr
    assert not (machine.project / ".venv").exists()


@pytest.mark.parametrize(
    ("driver", "extra"), [("580.65.06", "jax[cuda13]"), ("535.54", "jax[cuda12]")]
)
def test_the_driver_decides_which_cuda_is_installed_and_the_line_says_why(driver, extra, machine):
    done = machine(python3=python("nothing"), nvidia_smi=nvidia_smi(driver))
    assert done.returncode == 0, done.stderr
    assert f"and {extra}: the NVIDIA driver is {driver}, CUDA 13 needs 580" in done.stdout
    assert f"-r requirements.txt {extra}\n" in installed(machine.project)


def test_a_driver_that_is_too_old_stops_the_installation(machine):
    done = machine(python3=python("nothing"), nvidia_smi=nvidia_smi("470.82.01"))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: the NVIDIA driver is 470.82.01: ")
    assert not (machine.project / "installed").exists()
    again = machine({"JAX_PLATFORMS": "cpu"})
    assert again.returncode == 0 and "and jax: JAX_PLATFORMS=cpu" in again.stdout
