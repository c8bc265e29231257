"""Agents: several turns with tools and environments."""
