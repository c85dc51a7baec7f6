"""The composition: exits served, ends reported, snapshots whole."""

from __future__ import annotations

import json
import os
import platform
import select
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.machine.scripted import Call, Fault, Load, Program, ScriptedHart, Store, Wait, Write, factory
from tests.machine.test_board import image

from serai.machine import protocol, sbi
from serai.machine.board import RAM_BASE, UART_BASE, MachineConfig, NetworkInterface
from serai.machine.errors import ConfigurationError, LoadError, ProtocolError, SnapshotError
from serai.machine.machine import Machine, MachineExit
from serai.machine.snapshot import FORMAT_VERSION, MAGIC, Section, pack, unpack

MEMORY = 8 << 20


def machine(program: object, **settings: object) -> Machine:
    config = MachineConfig(memory_bytes=MEMORY, **settings)  # type: ignore[arg-type]
    return Machine(config, memoryview(bytearray(MEMORY)), factory(program))  # type: ignore[arg-type]


def test_exits_are_served_and_counted() -> None:
    seen: list[int] = []

    def program(hart: ScriptedHart) -> Program:
        yield Store(UART_BASE, 1, ord("A"))
        seen.append((yield Load(UART_BASE + 5, 1)))
        seen.append((yield Load(0x5000, 4)))
        yield Store(0x5000, 4, 1)
        seen.extend((yield Call(sbi.BASE, 0)))
        yield Wait()

    m = machine(program)
    assert m.run(100) is MachineExit.WAIT
    assert m.uart.output == b"A"
    assert seen == [0x60, 0, 0, 0x0200_0000]
    assert m.exits == {"mmio:uart": 2, "mmio:unmapped": 2, "sbi:base": 1, "wait": 1}


def test_a_device_interrupt_wakes_the_hart() -> None:
    def program(hart: ScriptedHart) -> Program:
        yield Store(0x0C00_0000 + 4 * 10, 4, 1)
        yield Store(0x0C00_2080, 4, 1 << 10)
        yield Store(UART_BASE + 1, 1, 1)
        yield Wait()
        assert (yield Load(0x0C20_1004, 4)) == 10
        yield Store(UART_BASE, 1, (yield Load(UART_BASE, 1)) + 1)
        yield Fault("done")

    m = machine(program)
    assert m.run(100) is MachineExit.WAIT
    m.uart.receive(b"A")
    assert m.run(100) is MachineExit.FAULT
    assert m.fault == "done"
    assert m.uart.output == b"B"


def test_budget_and_requests_end_a_run() -> None:
    def program(hart: ScriptedHart) -> Program:
        while True:
            yield Write(RAM_BASE, b"x")

    m = machine(program)
    assert m.run(10) is MachineExit.BUDGET
    assert m.instructions == 10
    m.hart.request_exit()
    assert m.run(1000) is MachineExit.BUDGET
    assert m.instructions == 10


def test_power_off_and_reboot(tmp_path: Path) -> None:
    boots: list[int] = []

    def program(hart: ScriptedHart) -> Program:
        boots.append(hart.pc)
        if len(boots) == 1:
            yield Store(UART_BASE + 1, 1, 2)
            yield Call(sbi.SRST, 0, (1,))
        yield Call(sbi.SRST, 0, (0,))

    (tmp_path / "Image").write_bytes(image())
    m = machine(program, kernel=tmp_path / "Image")
    m.boot()
    m.start_dirty_log()
    assert m.run(100) is MachineExit.REBOOT
    m.reboot()
    assert m.take_dirty_log()[0x200000 // 4096 // 8] & 1, "what the reboot wrote is in the new hart's log"
    assert m.run(100) is MachineExit.POWERED_OFF
    assert boots == [RAM_BASE + 0x200000] * 2
    assert m.instructions == 3, "counted across the reboot"
    assert m.uart.save().interrupt_enable == 0
    with pytest.raises(LoadError, match="no kernel"):
        machine(program).boot()


def saved_guest() -> bytes:
    def program(hart: ScriptedHart) -> Program:
        yield Store(UART_BASE + 7, 1, 0x5A)
        yield Wait()

    m = machine(program, interfaces=(NetworkInterface("eth0", bytes(6)),))
    m.run(100)
    m.nets["eth0"].receive(b"held frame")
    m.paused()
    return m.save()


def waiting(hart: ScriptedHart) -> Program:
    yield Wait()


def restored(snapshot: bytes) -> Machine:
    m = machine(waiting, interfaces=(NetworkInterface("eth0", bytes(6)),))
    m.restore(snapshot)
    return m


def test_snapshot_carries_devices_counters_and_time() -> None:
    snapshot = saved_guest()
    m = restored(snapshot)
    assert m.uart.read(7, 1) == 0x5A
    assert m.nets["eth0"].save().backlog == [b"held frame"]
    assert m.instructions == 2
    assert m.exits["wait"] == 1
    assert m.save() == snapshot
    m.hart.advance_time(4_000)  # ran on while the hand-over was decided
    m.resumed(10_000)
    assert m.hart.time == 100, "10 microseconds in all, not 14"


def test_every_damaged_byte_of_a_snapshot_is_noticed() -> None:
    snapshot = saved_guest()
    for position in range(0, len(snapshot), 7):
        damaged = bytearray(snapshot)
        damaged[position] ^= 0x20
        with pytest.raises(SnapshotError, match="snapshot section"):
            restored(bytes(damaged))
    for length in range(0, len(snapshot), 97):
        with pytest.raises(SnapshotError):
            restored(snapshot[:length])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_snapshot_of_nonsense_is_refused_or_harmless(data: st.DataObject) -> None:
    """Right checksums over wrong values: refused by name, or a machine that can still be used."""
    sections = unpack(saved_guest())
    name = data.draw(st.sampled_from(sorted(set(sections) - {"hart0"})))
    fields = json.loads(sections[name].body)
    key = data.draw(st.sampled_from(sorted(fields)))
    numbers = st.integers(-(2**70), 2**70)
    values = st.none() | st.booleans() | numbers | st.text(max_size=5) | st.lists(numbers, max_size=70)
    nested = st.lists(
        st.dictionaries(st.sampled_from(["size", "ready", "used", "enabled"]), numbers), max_size=3
    )
    if isinstance(fields[key], list) and fields[key] and isinstance(fields[key][0], dict):
        inner = data.draw(st.sampled_from(sorted(fields[key][0])))
        fields[key][0][inner] = data.draw(numbers | st.booleans())
    else:
        fields[key] = data.draw(values | nested)
    sections[name] = Section(name, sections[name].version, json.dumps(fields).encode())
    try:
        m = restored(pack(list(sections.values())))
    except SnapshotError as error:
        assert name in str(error)
        return
    m.resumed(0)
    m.uart.receive(b"typed")
    m.nets["eth0"].receive(b"frame")
    m.nets["eth0"].flush()
    for transport in m.virtio:
        for register in range(0, 0x110, 4):
            transport.write(register, 4, transport.read(register, 4))
    assert m.run(100) in (MachineExit.WAIT, MachineExit.BUDGET)
    unpack(m.save())


def test_snapshot_errors_name_the_section() -> None:
    snapshot = saved_guest()
    body = snapshot.index(b'{"claimed"')
    damaged = snapshot[:body] + b"[" + snapshot[body + 1 :]
    with pytest.raises(SnapshotError, match="'plic': its checksum"):
        restored(damaged)
    newer = MAGIC + (FORMAT_VERSION + 1).to_bytes(2, "little") + snapshot[10:]
    with pytest.raises(SnapshotError, match=f"version {FORMAT_VERSION + 1}"):
        restored(newer)
    with pytest.raises(SnapshotError, match="'net0': is missing"):
        m = machine(waiting)
        with_net = restored(snapshot)
        m.save()
        with_net.restore(m.save())


def test_impossible_machines_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="whole pages"):
        MachineConfig(memory_bytes=1000).check()
    with pytest.raises(ConfigurationError, match="1 to 8"):
        MachineConfig(memory_bytes=4096, vcpus=9).check()
    many = tuple(NetworkInterface(f"eth{n}", bytes(6)) for n in range(31))
    with pytest.raises(ConfigurationError, match="34 virtio"):
        MachineConfig(memory_bytes=4096, interfaces=many).check()


def test_protocol_round_trip_in_any_pieces() -> None:
    messages = [protocol.Message({"id": n}, bytes(n)) for n in range(5)]
    stream = b"".join(protocol.encode(message) for message in messages)
    for size in (1, 7, len(stream)):
        decoder = protocol.Decoder()
        got = [m for start in range(0, len(stream), size) for m in decoder.feed(stream[start : start + size])]
        assert got == messages
    for bad in (b"\xff" * 8, protocol._HEAD.pack(2, 0) + b"[]", protocol._HEAD.pack(1, 0) + b"{"):
        with pytest.raises(ProtocolError):
            protocol.Decoder().feed(bad)


def test_batches_and_configurations_round_trip() -> None:
    frames = [b"a", b"b" * 1500, b""]
    batch = b"".join(protocol.encode_frame(frame) for frame in frames)
    assert list(protocol.decode_batch(memoryview(batch))) == frames
    for broken in (batch[:2], batch[:-2], batch + bytes(1)):
        with pytest.raises(ProtocolError):
            list(protocol.decode_batch(memoryview(broken)))
    config = MachineConfig(
        memory_bytes=MEMORY,
        kernel=Path("k"),
        interfaces=(NetworkInterface("eth0", b"\1\2\3\4\5\6"),),
        extra_files={"a": (0o755, b"\0\xff")},
    )
    assert protocol.config_from_fields(protocol.config_to_fields(config)) == config
    with pytest.raises(ProtocolError):
        protocol.config_from_fields({"memory_bytes": 1})


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this architecture")
def test_a_confined_process_gets_no_network_and_runs_no_programs() -> None:
    program = """
import os, socket, errno
from serai.machine.confinement import confine
confine("serai-guest")
def refused(attempt):
    try:
        attempt()
    except PermissionError:
        return True
    return False
assert refused(lambda: socket.socket())
assert refused(lambda: os.execv("/bin/true", ["true"]))
assert refused(lambda: os.kill(os.getppid(), 0))
assert open("/proc/self/comm").read() == "serai-guest\\n"
assert "NoNewPrivs:\\t1" in open("/proc/self/status").read()
open("/proc/self/status").close()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_epoll_is_what_select_can_wait_for() -> None:
    """The guest process sleeps in select on an epoll object; this platform must support that."""
    read, write = os.pipe()
    epoll = select.epoll()
    epoll.register(read, select.EPOLLIN)
    assert select.select([epoll], [], [], 0)[0] == []
    os.write(write, b"x")
    assert select.select([epoll], [], [], 5)[0] == [epoll]
    epoll.close()
    os.close(read)
    os.close(write)
