"""Profile and manifest to plan: pure functions over frozen values."""
