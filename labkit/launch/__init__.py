"""Starts, finds and stops the lab: chooses a plan, drives Compose or a .venv, waits, reports."""
