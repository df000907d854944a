"""The memory that a step will take, estimated on fake tensors before it runs."""
