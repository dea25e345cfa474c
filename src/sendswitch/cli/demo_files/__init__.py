"""Pipelines and a program for the demo."""
