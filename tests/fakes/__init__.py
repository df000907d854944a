"""Stand-ins for what a test must not depend on."""
