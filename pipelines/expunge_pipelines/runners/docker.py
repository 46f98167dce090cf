"""Each step of a pipeline in a container of its own, on Docker or on Podman's service.

kfp's runner for Docker looks for an image by a name that Podman does not have. It removes a
container before its exit code is read, and then takes a killed one for a success. So its function
that runs a container is replaced here for as long as a pipeline runs.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from expunge import environment, processes
from expunge.errors import OperationalError, UserError
from expunge_pipelines.runners.environ import set_variables

LABEL = "expunge.holder"  # on a container: the process that waits for it (`expunge.processes`)
# The variables that a step is to see.
OURS = ("EXPUNGE_", "MLFLOW_", "AWS_", "CUDA_VISIBLE_DEVICES")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # in either case of letters
FILES = (  # those of them that name a file
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
)
SQLITE = "sqlite:///"
# What lies in EXPUNGE_HOME, by the beginning of its name.
STATE = ("certificates", "checkpoints", "data", "exports", "ledger.db", "ml", "runs")
KILLED = 128 + 9  # the exit code of what a SIGKILL ended
# The limit of /dev/shm, where decoding workers pass tensors; Docker's 64 MiB are a few batches.
SHARED_MEMORY = "8g"
ROOTLESS = "0:0"  # who gave the command, in the containers of an engine that runs as him


@contextmanager
def open_container_runner(reads: Sequence[str]) -> Iterator[Any]:
    """Yield kfp's runner for a pipeline whose steps run in containers, and set up what it needs.

    `reads` has the data source and the files that the steps read; those that are paths here are
    mounted, read-only, at the same path. EXPUNGE_HOME, the checkpoints and the data sets are, for
    writing. The user in a container is this one, so that what it writes is his: by his number, or
    as the 0 that an engine without root maps to him. Where this one is root, it is the image's own,
    to whom EXPUNGE_HOME and the checkpoints are handed. The network is this machine's, since
    MLflow's server may listen on it alone.

    Raises:
        OperationalError: no engine answers.
        UserError: the image is not there and cannot be pulled, or has no user that root can hand
            its folders to; EXPUNGE_HOME holds other things, which root must not hand over; or a
            store is a file that the containers do not see.
    """
    from kfp import local
    from kfp.local import docker_task_handler as handler

    mounts = _list_mounts(reads)
    client, address = _connect()
    with closing(client):
        _find_image(client)
        _remove_leftovers(client)
        info = client.info()
        user = _choose_user(client, info)
        _check_home(user)
        _hand_over(user, [environment.home(), environment.checkpoint_root()])
        options: dict[str, Any] = {
            "environment": _collect_variables(),
            "user": user,
            "network_mode": "host",
            "shm_size": SHARED_MEMORY,
            "labels": {LABEL: processes.name_this_process()},
            # A step reads, computes and writes its own files: no right of root helps it.
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "healthcheck": {"test": ["NONE"]},  # the exit code says it
        }
        if user == f"{os.getuid()}:{os.getgid()}":
            # A user given by number has no other groups, and shared data may be readable by one.
            options["group_add"] = [str(group) for group in os.getgroups()]
        if "nvidia" in info.get("Runtimes", {}):
            # Of the ways to give a container a GPU, the one that kfp's runner passes on.
            options["runtime"] = "nvidia"
            options["environment"]["NVIDIA_VISIBLE_DEVICES"] = "all"

    def run(*, client: Any, image: str, command: list[str], volumes: Any, **given: Any) -> int:
        mode = next(iter(volumes.values()))["mode"]  # with SELinux' mark where the host has it
        bound = {path: {"bind": path, "mode": mode.replace("rw", how)} for path, how in mounts}
        _hand_over(user, [environment.home() / "runs"])  # kfp has made folders there since
        return _run_container(client, environment.image(), command, volumes=bound, **given)

    # kfp has no setting for it. The signature is kfp's, and a test with an engine holds it.
    before = handler.run_docker_container
    handler.run_docker_container = run
    try:
        with set_variables(DOCKER_HOST=address):
            yield local.DockerRunner(**options)
    finally:
        handler.run_docker_container = before


def _run_container(client: Any, image: str, command: list[str], **options: Any) -> int:
    """Run a container to its end, print what it says, and return its exit code.

    The container is gone when this returns or raises.
    """
    import docker

    # A step may be silent for long, and Podman answers nothing before it says its first word.
    client.api.timeout = None
    try:
        # Not `containers.run`: an interrupt between its two calls would leave the step running.
        container = client.containers.create(image, command, detach=True, **options)
        try:
            container.start()
            for piece in container.logs(stream=True, follow=True):
                print(piece.decode(errors="replace"), end="")  # noqa: T201 (the runner's log)
            code = int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True, v=True)
    except (docker.errors.DockerException, OSError) as error:
        raise OperationalError(f"the container engine could not run a step: {error}") from error
    if code == KILLED:
        print("Killed")  # noqa: T201 (what a shell says of a process, and the log is read for it)
    return code


def _list_addresses() -> list[str]:
    """Return where an engine may listen, in the order in which they are tried."""
    if given := os.environ.get("DOCKER_HOST"):
        return [given]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    names = ("docker.sock", "podman/podman.sock")
    paths = ["/var/run/docker.sock", *(f"{runtime}/{name}" for name in names)]
    return [f"unix://{path}" for path in (*paths, "/run/podman/podman.sock")]


def _connect() -> tuple[Any, str]:
    """Return a client of the first engine that answers, and that engine's address."""
    import docker

    for address in _list_addresses():
        with suppress(docker.errors.DockerException, OSError):
            client = docker.from_env(environment={**os.environ, "DOCKER_HOST": address})
            client.ping()
            return client, address
    raise OperationalError(
        f"no container engine answers at {' or '.join(_list_addresses())}; start Docker, or Podman "
        "with `podman system service --time 0`, or name its address in DOCKER_HOST"
    )


def _find_image(client: Any) -> None:
    """Pull the image of the steps, unless the engine has it."""
    import docker

    image = environment.image()
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(image)
        except (docker.errors.DockerException, OSError) as error:
            raise UserError(
                f"the image {image} is not there and cannot be pulled ({error}); `make images` "
                "builds it, and EXPUNGE_IMAGE names another"
            ) from error


def _remove_leftovers(client: Any) -> None:
    """Remove the containers of runs whose process was killed; those of others come and go."""
    import docker

    left = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    for container in left:
        if processes.has_ended(container.labels[LABEL]):
            with suppress(docker.errors.NotFound):  # another run removes it as well
                container.remove(force=True, v=True)


def _choose_user(client: Any, info: Mapping[str, Any]) -> str:
    """Return the `UID:GID` of the steps."""
    # Podman's word for an engine without root, and Docker's.
    if info.get("Rootless") or "name=rootless" in (info.get("SecurityOptions") or ()):
        return ROOTLESS
    if os.getuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    given = client.images.get(environment.image()).attrs["Config"].get("User") or "0"
    if not re.fullmatch(r"[1-9]\d*(:\d+)?", given):
        raise UserError(
            f"the image {environment.image()} runs as {given!r}; since this user is root, expected "
            "one with the number of another user, as USER 10001:0 in a Dockerfile gives it"
        )
    uid, _, gid = given.partition(":")
    return f"{uid}:{gid or 0}"


def _must_hand_over(user: str) -> bool:
    """Return whether the steps have another user than this process, and one with fewer rights."""
    return os.getuid() == 0 and user != ROOTLESS


def _check_home(user: str) -> None:
    """Refuse to give away a home that is somebody's home, or a project.

    Raises:
        UserError: EXPUNGE_HOME holds something that is not expunge's state.
    """
    home = environment.home()
    others = sorted(path.name for path in home.iterdir() if not path.name.startswith(STATE))
    if others and _must_hand_over(user):
        raise UserError(
            f"EXPUNGE_HOME is {home}, which holds {others[0]!r} as well; as root, --runner docker "
            "hands that folder to the image's user: expected one that holds expunge's state alone"
        )


def _hand_over(user: str, folders: Sequence[Path]) -> None:
    """Make the folders the containers' user's, where this user is root and that one is not."""
    if not _must_hand_over(user):
        return
    uid, gid = map(int, user.split(":"))
    for folder in folders:
        for name, inner, files in os.walk(folder):  # passes over what another run has just removed
            for path in (Path(name), *(Path(name, entry) for entry in (*inner, *files))):
                with suppress(FileNotFoundError):
                    if path.lstat().st_uid != uid:
                        os.lchown(path, uid, gid)


def _collect_variables() -> dict[str, str]:
    """Return the variables of a step: by name, since a container's are easily read from outside."""
    given = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(OURS) or key.upper() in PROXIES
    }
    given.pop("EXPUNGE_TTY", None)  # no terminal of this machine is there
    given["EXPUNGE_HOME"] = str(environment.home())
    given["EXPUNGE_DATA_ROOT"] = str(environment.data_root())
    given["EXPUNGE_CHECKPOINTS"] = str(environment.checkpoint_root())
    # The image's home is not everybody's, and libraries keep caches in it.
    return given | {"TMPDIR": os.environ["TMPDIR"], "HOME": os.environ["TMPDIR"]}


def _check_stores() -> None:
    """Refuse a store in a file that the containers do not see.

    A step that finds no file makes one, and what it writes is gone with its container.
    """
    for name in ("EXPUNGE_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        given = os.environ.get(name, "")
        path = Path(given.removeprefix(SQLITE))
        if given.startswith(SQLITE) and not path.is_relative_to(environment.home()):
            raise UserError(
                f"{name} is {given}, a file that no container sees; with --runner docker expected "
                f"a server, or an absolute path in EXPUNGE_HOME ({environment.home()})"
            )


def _list_mounts(reads: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (path, mode) of each folder or file, the same inside as here."""
    _check_stores()
    state = (environment.home(), environment.checkpoint_root(), environment.data_root())
    for folder in state:
        folder.mkdir(parents=True, exist_ok=True)
    found = {str(folder): "rw" for folder in state}
    for text in (*reads, *(os.environ.get(name, "") for name in FILES)):
        path = Path(text.removeprefix("folder:")).expanduser()
        if text and path.is_absolute() and path.exists():
            found.setdefault(str(path), "ro")
    return sorted(found.items())
