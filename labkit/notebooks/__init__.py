"""Runs notebooks headless in a fresh kernel and says what held."""
