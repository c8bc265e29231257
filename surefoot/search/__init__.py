"""Alignment at inference: what a frozen policy says when something guides it."""
