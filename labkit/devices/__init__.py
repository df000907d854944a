"""What this machine can compute on: what NVML, the operating system and torch say of it."""
