"""The compute devices of this machine, from NVML, the operating system and torch."""
