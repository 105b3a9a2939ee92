"""Stand-ins for the files by which a machine's hardware is known."""

from pathlib import Path

GVNIC, UNKNOWN = "0x0042", "0x00ff"  # Google's network controller; a number of no known TPU


def with_device(root: Path, vendor: str, device: str, driver: str = "") -> Path:
    """One more device on the PCI bus."""
    bus = root / "sys" / "bus" / "pci"
    folder = bus / "devices" / f"0000:00:{len(list(bus.glob('devices/*'))):02x}.0"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "device").write_text(f"{device}\n")
    if driver:
        (bus / "drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(bus / "drivers" / driver)
    return root


def with_file(root: Path, name: str) -> Path:
    """One more file in /dev."""
    file = root / "dev" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return root
