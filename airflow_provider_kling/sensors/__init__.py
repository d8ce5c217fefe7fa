"""Sensors that wait for videos."""
