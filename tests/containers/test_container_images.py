"""What is in the images, and what is not."""

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from expunge import __version__
from expunge.code_digest import compute_code_digest
from expunge.environment import IMAGE

pytestmark = pytest.mark.containers
ROOT = Path(__file__).parents[2]
MLFLOW = f"expunge-mlflow:{__version__}"
IMAGES = {IMAGE: "/opt/expunge", MLFLOW: "/opt/mlflow"}  # with the folder of their packages
HELP_SECONDS = 1.0
CODE_BYTES = 5 * 2**20  # our own code is a layer of 2 MB
Run = Callable[..., str]

# A program of its own, since it runs inside.
LOOK = (ROOT / "tests" / "helpers" / "look.py").read_text()


@pytest.mark.parametrize("image", IMAGES)
def test_no_compiler_no_cache_no_test_no_secret(engine: Run, image: str) -> None:
    look = ["python3", "-c", LOOK, IMAGES[image]]
    found = json.loads(engine("run", "--rm", "--network", "host", "--user", "0", image, *look))
    assert found == {"compilers": [], "caches": [], "tests": [], "secrets": []}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/usr/bin/x86_64-linux-gnu-gcc-12", "compilers"),
        ("/root/.cache/wheel", "caches"),
        ("/opt/expunge/lib/tests/test_a.py", "tests"),
        ("/home/expunge/.netrc", "secrets"),
    ],
)
def test_the_look_finds_what_it_looks_for(engine: Run, path: str, kind: str) -> None:
    made = f"path = Path({path!r}); path.parent.mkdir(parents=True, exist_ok=True)"
    made += "; path.touch(); path.chmod(0o755)\n"
    look = ["python3", "-c", f"from pathlib import Path; {made}{LOOK}", "/opt/expunge"]
    found = json.loads(engine("run", "--rm", "--network", "host", "--user", "0", IMAGE, *look))
    assert [name for name, paths in found.items() if paths] == [kind]


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_that_built_it_is_told(api: Any, image: str) -> None:
    """No variable and no step of the build holds a credential, an index or a certificate."""
    settings = json.dumps(api.images.get(image).attrs["Config"]["Env"])
    history = json.dumps([row["CreatedBy"] for row in api.api.history(image)])
    for word in ("PASSWORD", "TOKEN", "ACCESS_KEY", "://", "index-url", "BEGIN CERTIFICATE"):
        assert word not in (settings + history).replace("http://127.0.0.1:5000", "").replace(
            "sqlite:////mlflow", ""
        ), word


@pytest.mark.parametrize("image", IMAGES)
def test_the_user_is_not_root_and_can_write_at_home(inside: Run, image: str) -> None:
    source = "import os, pathlib; pathlib.Path.home().joinpath('x').touch(); print(os.getuid())"
    assert inside(source, image=image).split() == ["10001"]
    anybody = inside(source, "--user", "12345:0", image=image)  # as OpenShift chooses one
    assert anybody.split() == ["12345"]


@pytest.mark.parametrize("image", IMAGES)
def test_labels_say_the_version_and_the_commit(api: Any, image: str) -> None:
    labels = api.images.get(image).labels
    assert labels["org.opencontainers.image.version"] == __version__
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    assert labels["org.opencontainers.image.revision"].partition(",")[0] == commit


def test_the_health_check_passes(engine: Run) -> None:
    told = json.loads(engine("image", "inspect", IMAGE))[0]
    check = told.get("Healthcheck") or told["Config"]["Healthcheck"]  # Podman's place, and Docker's
    kind, *command = check["Test"]
    assert kind == "CMD"
    assert engine("run", "--rm", "--network", "host", IMAGE, *command).strip().endswith(__version__)


def test_help_is_there_at_once(inside: Run) -> None:
    """The start of the command, without the engine's own work: the median of three."""
    source = (
        "import subprocess, time\n"
        "for _ in range(3):\n"
        "    start = time.monotonic()\n"
        "    subprocess.run(['expunge', '--help'], check=True, stdout=subprocess.DEVNULL)\n"
        "    print(time.monotonic() - start)\n"
    )
    seconds = sorted(float(line) for line in inside(source).split())
    assert seconds[1] < HELP_SECONDS, seconds


def test_the_code_in_the_image_is_this(inside: Run) -> None:
    source = "from expunge.code_digest import compute_code_digest; print(compute_code_digest())"
    assert inside(source).strip() == compute_code_digest()


def test_every_module_of_the_steps_imports(inside: Run) -> None:
    """All but `ops`, which only what compiles reads."""
    source = (
        "import importlib, pkgutil, expunge\n"
        "names = [m.name for m in pkgutil.walk_packages(expunge.__path__, 'expunge.')]\n"
        "names.remove('expunge.ops')\n"
        "skipped = [n for n in names if n.endswith(('__main__', 'migrations.env'))]\n"
        "for name in set(names) - set(skipped):\n"
        "    importlib.import_module(name)\n"
        "print(len(names))\n"
    )
    assert int(inside(source)) > 80


def test_packages_are_the_locks_and_no_more_than_run(inside: Run) -> None:
    source = (
        "import json\n"
        "from importlib.metadata import distributions\n"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in distributions()}))"
    )
    found: dict[str, str] = json.loads(inside(source))
    lines = (ROOT / "requirements.lock").read_text().split()
    lock = dict(line.split("==") for line in lines)
    assert {name: lock.get(name) for name in found if name != "expunge"} == {
        name: number for name, number in found.items() if name != "expunge"
    }
    assert {"torch", "torchvision", "mlflow-skinny", "kfp", "boto3", "onnx"} <= found.keys()
    assert not {"mlflow", "kfp-server-api", "kfp-kubernetes", "pytest", "pip", "triton"} & set(
        found
    )


def test_torch_is_built_for_cuda(inside: Run) -> None:
    source = "import torch; print(torch.version.cuda, torch.cuda.is_available(), torch.__version__)"
    cuda, _, number = inside(source).split()
    assert int(cuda.split(".")[0]) >= 12
    assert number.partition("+")[0] == version("torch").partition("+")[0]


def test_our_code_is_a_small_layer_of_its_own(api: Any) -> None:
    """On top of the packages, and these on top of PyTorch."""
    sizes = [row["Size"] for row in api.api.history(IMAGE) if row["Size"]]
    code, packages, pytorch, *_ = sizes
    assert code < CODE_BYTES < packages < pytorch
