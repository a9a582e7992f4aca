"""Configs that come with the package."""

from pathlib import Path

DEMO = Path(__file__).parent / "demo.yaml"
