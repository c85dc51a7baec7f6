"""From a spec's mode of virtualization to the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from serai.agent.spec import build_config, check_spec
from serai.errors import ImageError, InvalidInputError
from serai.hypervisor.driver import Mode
from serai.hypervisor.emulated import machine_config
from serai.images import Image, ImageStore
from serai.machine import protocol
from serai.v1.guest_pb2 import GuestSpec


class Images:
    def __init__(self, *names: str) -> None:
        self._names = names

    def get(self, name: str) -> Image:
        if name not in self._names:
            return ImageStore(Path("/nowhere")).get(name)
        image = object.__new__(Image)
        object.__setattr__(image, "folder", Path("/images") / name)
        object.__setattr__(image, "manifest", type("M", (), {"command_line": "quiet", "name": name}))
        return image

    def list(self) -> list[Image]:
        return []


def spec(mode: GuestSpec.Mode) -> GuestSpec:
    return GuestSpec(image="debian", vcpus=1, memory_bytes=1 << 20, mode=mode)


def test_full_brings_the_firmware_to_the_machine() -> None:
    config = machine_config(build_config("u", spec(GuestSpec.FULL), Images("debian", "opensbi")))
    assert protocol.config_from_fields(protocol.config_to_fields(config)) == config
    assert config.mode.value == "full"
    assert config.firmware is not None
    assert config.firmware.parent.name == "opensbi"


@pytest.mark.parametrize("mode", [GuestSpec.MODE_UNSPECIFIED, GuestSpec.PARAVIRTUAL])
def test_paravirtual_is_the_default_and_needs_no_firmware(mode: GuestSpec.Mode) -> None:
    config = build_config("u", spec(mode), Images("debian"))
    assert (config.mode, config.firmware) == (Mode.PARAVIRTUAL, None)


def test_a_node_without_the_firmware_says_how_to_get_it() -> None:
    with pytest.raises(ImageError, match="opensbi") as refusal:
        build_config("u", spec(GuestSpec.FULL), Images("debian"))
    assert "serai image build debian" in refusal.value.hint


def test_a_mode_that_does_not_exist_is_refused() -> None:
    wrong = spec(GuestSpec.FULL)
    wrong.mode = 7  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match="mode is 7"):
        check_spec(wrong)
