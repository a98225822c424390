"""The Ray of a run: a cluster that is asked first whether it answers, or one of our own on this machine.

Ray itself waits minutes for a cluster that does not answer, and tells neither a refused token nor a socket path that is too long. What
asks it beforehand uses inner parts of Ray 2.60, here and nowhere else.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import ray
from ray.exceptions import AuthenticationError

from pararl.config import Config, ConfigError
from pararl.rollout.waiting import watched

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for a job, which runs on the cluster that it was submitted to."""
PATIENCE = 5.0
"""Seconds that a cluster has to answer."""


def asked_for(environ: Mapping[str, str]) -> str | None:
    """The cluster that a run is to join: host:port, ray://host:port, or auto, which is any on this machine. None = none: as without an
    address, a Ray of its own is started for ``RAY_ADDRESS=local``."""
    address = environ.get("RAY_ADDRESS", "")
    return None if address == "local" else address or ("auto" if JOB in environ else None)


def starts_own_ray() -> bool:
    """Whether ``start_ray`` starts a private Ray on this machine, whose GPUs are then all there are."""
    return not ray.is_initialized() and asked_for(os.environ) is None


def start_ray(config: Config) -> None:
    """Connect to the cluster of this process (``RAY_ADDRESS``, or a Ray job's own), else start a private one on this machine.

    Raises ConfigError where that fails, or the cluster has fewer GPUs than the run needs: Ray would wait for them for ever.
    ``unreachable`` says beforehand, and sooner, what is wrong with a cluster.
    """
    if not ray.is_initialized():
        _connect()
    if told := lacking_gpus(config, ray.cluster_resources().get("GPU", 0.0), "the Ray cluster"):
        raise ConfigError(told)


def _connect() -> None:
    # Errors of actors come back as exceptions; the rest of their output stays in Ray's log folder, out of the way of the progress bar.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    asked = asked_for(os.environ)
    try:
        if asked is None:
            # One CPU, because our actors claim none and Ray would start an idle process for every CPU it is told of.
            with watched("Ray to start"):
                ray.init(address="local", num_cpus=1, include_dashboard=False, **quiet)
        else:
            with watched(f"the Ray cluster at {asked}"):
                ray.init(address=asked if asked != "auto" else _found(), **quiet)  # an existing cluster refuses resource counts
    except Exception as error:  # of every kind, Exception itself among them
        where = f"Ray cannot be started, in {temp_folder()}" if asked is None else f"the Ray cluster at {asked} cannot be joined"
        raise ConfigError(f"{where}: {error}{f' ({error.__cause__})' if error.__cause__ else ''}") from error


def lacking_gpus(config: Config, there: float, where: str) -> str | None:
    """What is wrong with a run on ``where``, which has so many GPUs; None = nothing."""
    rollout, learner = config.rollout, config.learner
    wanted = rollout.workers * rollout.gpus + learner.gpus
    if wanted <= there:
        return None
    return (
        f"rollout.workers {rollout.workers} x rollout.gpus {rollout.gpus} + learner.gpus {learner.gpus} = {wanted:g} GPUs, but {where} has "
        f"{there:g} (set --rollout.gpus, --rollout.workers or --learner.gpus)"
    )


def unreachable() -> str | None:
    """What is wrong with the cluster that this process is to join; None = nothing, or it is to join none."""
    asked = asked_for(os.environ)
    return None if asked is None or ray.is_initialized() else problem_at(asked)


def problem_at(asked: str) -> str | None:
    """What is wrong with the cluster at the address ``asked``, which has ``PATIENCE`` seconds to answer; None = nothing."""
    where, client, address = f"RAY_ADDRESS={asked}", asked.startswith("ray://"), asked.removeprefix("ray://")
    try:
        if asked == "auto":
            address = _found()
            where = f"{where}, here {address}"
        elif not _is_address(address):
            return f"{where}: an address is host:port, ray://host:port, auto or local (that of a dashboard, http://..., is none)"
        _ask(address, client)
    except ConnectionError:
        return f"{where}: no Ray cluster runs on this machine (start one, or unset RAY_ADDRESS)"
    except AuthenticationError as error:
        return f"RAY_AUTH_MODE=token, but there is no token: {str(error).partition('. ')[0]} (see docs/ray.md)"
    except grpc.RpcError as error:
        return f"{where}: {_refusal(error, client)}"
    except RuntimeError:
        return f"{where}: no node of this cluster runs on this machine (start one with `ray start --address={address}`, or take ray://)"
    return None


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and "/" not in text and port.isdecimal() and 0 < int(port) < 2**16


def _refusal(error: Any, client: bool) -> str:
    """What an error of a call of the cluster says."""
    code = error.code()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return _refused_token(os.environ)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no Ray cluster answers there within {PATIENCE:g} s (start one, or unset RAY_ADDRESS)"
    if code == grpc.StatusCode.UNIMPLEMENTED:
        port = "of `ray start --ray-client-server-port`, by default 10001" if client else "of `ray start --port`, by default 6379"
        return f"what answers there is no Ray cluster (the port must be that {port}): {error.details()}"
    return f"no Ray cluster answers there (start one, or unset RAY_ADDRESS): {error.details()}"


def _found() -> str:
    """The address of the cluster on this machine, as Ray finds it for ``auto``. Raises ConnectionError where there is none."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import canonicalize_bootstrap_address

    address = canonicalize_bootstrap_address("auto")
    assert address is not None
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return address


def _ask(address: str, client: bool) -> None:
    """Ask the cluster at ``address`` whatever Ray asks it first, with Ray's own token and TLS.

    Raises grpc.RpcError or AuthenticationError, and RuntimeError where no node of the cluster is on this machine, as drivers need one.
    """
    from ray._private.gcs_utils import create_gcs_channel
    from ray._private.services import get_node_to_connect_for_driver
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated import (
        gcs_service_pb2,
        gcs_service_pb2_grpc,
        node_manager_pb2,
        node_manager_pb2_grpc,
        ray_client_pb2,
        ray_client_pb2_grpc,
    )

    with create_gcs_channel(address) as channel:
        if client:
            ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)  # type: ignore[attr-defined]
            ray_client_pb2_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=PATIENCE)
            return
        alive = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).CheckAlive(alive, timeout=PATIENCE)
    node = get_node_to_connect_for_driver(GcsClient(address=address), timeout_seconds=int(PATIENCE))
    with create_gcs_channel(f"{node.node_manager_address}:{node.node_manager_port}") as channel:
        settings = node_manager_pb2.GetSystemConfigRequest()  # type: ignore[attr-defined]
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).GetSystemConfig(settings, timeout=PATIENCE)


def _refused_token(environ: Mapping[str, str]) -> str:
    """What is said where the cluster refuses the token of this process: where that came from, in the order in which Ray looks."""
    mode = environ.get("RAY_AUTH_MODE")
    if mode is None or mode.lower() != "token":
        return f"the Ray cluster wants a token, and RAY_AUTH_MODE is {mode or 'not set'} here (export RAY_AUTH_MODE=token)"
    file = environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    source = "of RAY_AUTH_TOKEN" if "RAY_AUTH_TOKEN" in environ else f"in {file}"
    return f"the Ray cluster refuses the token {source} (set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to that of the cluster)"


def temp_folder() -> Path:
    """Where a Ray that this process starts keeps its sockets and logs."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())
