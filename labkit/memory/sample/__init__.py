"""Memory over time: a sampler, its figures, and how they are shown."""
