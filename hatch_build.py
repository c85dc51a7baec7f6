"""Generate the Python stubs of the contracts below ``proto/``.

Hatchling runs this for wheels and editable installs alike, so the stubs never have to be committed;
``make protos`` runs it by hand for a checkout that is used without being installed.
"""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROTO_ROOT = ROOT / "proto"


def generate_stubs() -> None:
    """Run protoc over every contract; stubs land beside it.

    Raises RuntimeError when a contract does not compile; protoc has then printed file and line.
    """
    import grpc_tools  # noqa: PLC0415 - absent where only metadata is built
    from grpc_tools import protoc  # noqa: PLC0415

    sources = sorted(str(path) for path in PROTO_ROOT.rglob("*.proto"))
    includes = [f"-I{PROTO_ROOT}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    outputs = [f"--{kind}_out={PROTO_ROOT}" for kind in ("python", "pyi", "grpc_python")]
    plugin = _find_plugin("protoc-gen-mypy_grpc")
    if plugin is not None:
        outputs += [f"--plugin=protoc-gen-mypy_grpc={plugin}", f"--mypy_grpc_out={PROTO_ROOT}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        raise RuntimeError("protoc refused a contract below proto/; see its message above")


def _find_plugin(name: str) -> str | None:
    """Where the typed-gRPC plugin is: beside this interpreter first, as in an unactivated environment."""
    beside = Path(sysconfig.get_path("scripts")) / name
    return str(beside) if beside.exists() else shutil.which(name)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # `make protos` needs no hatchling
    pass
else:

    class StubsBuildHook(BuildHookInterface):  # type: ignore[type-arg]
        """Called by hatchling before it collects files."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, object]) -> None:
            """Generate the stubs; `version` is "standard" or "editable"."""
            generate_stubs()


if __name__ == "__main__":
    generate_stubs()
