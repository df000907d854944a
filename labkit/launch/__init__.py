"""Starts, finds and stops the lab: chooses how, drives Compose or a .venv, waits, reports."""
