"""The guest: an emulated RISC-V machine. Imports nothing else of Serai."""
