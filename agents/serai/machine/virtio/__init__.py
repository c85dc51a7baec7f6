"""Para-virtual devices after "Virtual I/O Device (VIRTIO) Version 1.2" (OASIS 2022)."""
